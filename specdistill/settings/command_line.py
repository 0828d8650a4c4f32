"""Commands that are printed for the user to type."""

from __future__ import annotations

import shlex
from collections.abc import Collection

from specdistill.settings.checks import typed
from specdistill.settings.parts import Config, defaults
from specdistill.settings.self_prompts import self_source

PROJECT = (
    *("target", "target_base", "chat_template_kwargs", "raw_prompts"),
    *("self_system", "self_temperature", "self_top_p", "self_max_tokens", "self_seed", "device", "threads"),
)
"""Settings that are the same in every command of a project."""


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
            words += typed(name, value)
    return words


def new_prompts(prompts: str) -> list[str]:
    """Flags of prompts like those of --prompts that were not used yet; none where those came with the tool."""
    return [] if prompts.startswith("builtin") else ["--prompts", "NEW_PROMPTS"]


def unseen_prompts(prompts: str) -> list[str]:
    """Flags of prompts of the kind that was trained on, which training never saw.

    Args:
        prompts: --prompts of the training. Without a name bench takes the held-out half of the built-in ones.
    """
    own = self_source(prompts, "train")
    return new_prompts(prompts) if own is None else ["--prompts", f"self:{own.count}:heldout"]
