"""Commands that are printed for the user to type."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from specdistill.settings.checks import flag
from specdistill.settings.parts import Config, defaults


def command(*words: str) -> str:
    """One command, quoted as a shell needs it."""
    return shlex.join(["specdistill", *words])


def changed_flags(config: Config, names: Collection[str]) -> list[str]:
    """Flags of those settings that are not at their defaults, in the configuration's order.

    Args:
        config: A command's settings.
        names: Flat names; those that the command does not have are passed over.
    """
    usual, words = defaults(type(config)), []
    for name, value in config.to_flat().items():
        if name in names and value != usual.get(name):
            words += [flag(name)] if value is True else [flag(name), str(value)]
    return words


def new_prompts(prompts: str) -> list[str]:
    """Flags of prompts like those of --prompts that were not used yet; none where those came with the tool."""
    return [] if prompts.startswith("builtin") else ["--prompts", "NEW_PROMPTS"]
