"""Flags that take several values: separated by spaces or by commas, and never none."""

from __future__ import annotations

import typing
from pathlib import Path

from cyclopts import UNSET, App, ArgumentCollection, Token

from specdistill.errors import ConfigError


def read_lists(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Takes values with commas between them apart; called with all flags and files read.

    Raises:
        ConfigError: A flag is there without a value, which would be the same as leaving it out.
    """
    for argument in arguments:
        if typing.get_origin(argument.resolved_hint) is not tuple:
            continue
        for token in argument.tokens:
            # Text that is empty is refused by the setting's own check.
            if token.source == "cli" and (token.implicit_value is not UNSET or set(token.value) in ({","}, {",", " "})):
                raise ConfigError(f"{argument.name} needs a value, or several with spaces between them")
        argument.tokens = [part for token in argument.tokens for part in _parts(token)]


def _parts(token: Token) -> list[Token]:
    """A token for each value between commas. The name of a file that exists may hold commas itself."""
    if "," not in token.value or token.value.startswith("[") or Path(token.value).exists():
        return [token]
    return [token.evolve(value=value.strip()) for value in token.value.split(",") if value.strip()]
