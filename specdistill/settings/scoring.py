"""Names of the scorers of answers, for configurations. `specdistill.data.scorers` has the scorers."""

from __future__ import annotations

from specdistill.errors import ConfigError

LIKELIHOOD = "target-likelihood"
"""The target's own likelihood: it chooses among candidates, and judges no finished answer."""
TEXT_SCORERS = ("exact-match", "number", "json")
"""Scorers that compare an answer's text with the field answer."""
CHOICES = f"{', '.join(TEXT_SCORERS)} or module:function"
"""The scorers of texts, for messages."""


def check_name(name: str, flag: str = "--scorer", *, likelihood: bool = True) -> None:
    """Refuses a name that no scorer has; a function is looked for later.

    Args:
        name: Value of the flag.
        flag: The flag, for messages.
        likelihood: Whether `target-likelihood` is a choice here.

    Raises:
        ConfigError: No such scorer.
    """
    if ":" in name or name in TEXT_SCORERS or (likelihood and name == LIKELIHOOD):
        return
    first = f"{LIKELIHOOD}, " if likelihood else ""
    raise ConfigError(f"unknown {flag} {name!r}; choose {first}{CHOICES}")
