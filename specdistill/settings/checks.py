"""Checks of single settings; each error names the flag."""

from __future__ import annotations

from specdistill.errors import ConfigError


def at_least(config: object, least: float, *names: str) -> None:
    """Raises ConfigError for the first named setting below `least`, spelled as its flag."""
    for name in names:
        # NaN is not below anything either.
        if not getattr(config, name) >= least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(config, name)}")


def within_one(config: object, *names: str) -> None:
    """Raises ConfigError for the first named setting outside [0, 1]; None passes."""
    for name in names:
        if not 0 <= (getattr(config, name) or 0) <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be in [0, 1], got {getattr(config, name)}")
