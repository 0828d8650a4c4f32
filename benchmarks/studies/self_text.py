"""Open prompts: those that SmolLM2 writes itself to train on, and the built-in ones held out to judge by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.support.paths import target_file
from specdistill import GenerateConfig, generate
from specdistill.data.prompts import load_prompts
from specdistill.report.progress import TerminalProgress
from specdistill.settings.self_prompts import SelfPromptSettings

MAX_NEW_TOKENS = 48
SELF = SelfPromptSettings(self_max_tokens=96)
OWN: dict[str, Any] = {"prompts": "self:920", "self_max_tokens": SELF.self_max_tokens}
"""Settings that name the prompts of its own."""


def write_heldout(path: Path) -> None:
    """Writes the built-in held-out prompts to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heldout = [
        {"id": prompt.id, "messages": prompt.messages, "category": prompt.category}
        for prompt in load_prompts("builtin:heldout")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in heldout))


def write_target_answers(
    answers: Path, prompts: dict[str, Any], per_prompt: int, max_new_tokens: int = MAX_NEW_TOKENS
) -> None:
    """Writes the target's sampled answers to prompts, where they are missing.

    Args:
        answers: Their folder.
        prompts: Settings that name the prompts.
        per_prompt: Answers to each.
        max_new_tokens: Tokens of an answer at most.
    """
    config = GenerateConfig.flat(
        target=str(target_file()),
        output=str(answers),
        rollouts_per_prompt=per_prompt,
        max_new_tokens=max_new_tokens,
        batch_size=64,
        **prompts,
    )
    generate(config, TerminalProgress())
