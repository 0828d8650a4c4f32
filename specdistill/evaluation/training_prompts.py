"""Whether a bench's prompts are those that the draft was trained on, or of another kind than those."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from specdistill.data.prompts import Prompt, load_prompts
from specdistill.decoding.self_prompts import written_before
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.report import TrainingPrompts
from specdistill.files import run_settings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.parts import pick
from specdistill.settings.self_prompts import SelfPromptSettings


def training_prompts(
    config: MeasureConfig, prompts: Sequence[Prompt], say: Callable[[str], None]
) -> list[TrainingPrompts] | None:
    """Reads the settings in the drafts' directories and says what they mean for this bench.

    Args:
        config: Drafts and prompt source.
        prompts: The prompts that are scored.
        say: Where a remark goes, one line each.

    Returns:
        An entry per draft with a remark; None where there is nothing to remark.
    """
    drafts = [draft for draft in (config.draft, *config.compare) if draft is not None]
    found = [entry for entry in (_remark(draft, config, prompts) for draft in drafts) if entry is not None]
    for entry in found:
        say(f"warning: {entry.remark}")
    return found or None


def _remark(draft: str, config: MeasureConfig, prompts: Sequence[Prompt]) -> TrainingPrompts | None:
    settings = run_settings.read(Path(draft)) if run_settings.exists(Path(draft)) else {}
    source = settings.get("prompts")
    if not isinstance(source, str):
        return None
    # Raw text and rejection logs have no prompts: those of --prompts only judged the draft.
    learned_prompts = settings.get("text") is None and settings.get("online") is None
    chat: ChatSettings = pick(ChatSettings, settings)
    shared = _shared(training_source(settings, chat, config.target), config.prompts, prompts)
    remark = ""
    if shared:
        remark = (
            f"{draft} was trained or chosen on {shared} of the {len(prompts)} prompts that this bench scores (its "
            f"--prompts {source}), so its acceptance on new ones may be lower; set --prompts to prompts that it has "
            "not seen"
        )
    elif learned_prompts and config.prompts.startswith("builtin") and not source.startswith(("builtin", "self:")):
        remark = (
            f"{draft} was trained on {source}, but this bench runs on the built-in prompts, which are of another "
            "domain; set --prompts to new prompts of the kind that it was trained on"
        )
    elif chat != config.chat:
        remark = (
            f"{draft} was trained with other --chat-template-kwargs or --raw-prompts than this bench has; set those "
            "that you serve with in both"
        )
    return TrainingPrompts(draft=draft, prompts=source, shared_prompts=shared, remark=remark) if remark else None


def training_source(settings: run_settings.FlatSettings, chat: ChatSettings, target: str) -> str:
    """The training's --prompts; of prompts that the target wrote the file, empty where it is gone.

    Args:
        settings: The training's settings, with its --prompts.
        chat: How it rendered them.
        target: The bench's target.
    """
    source = str(settings["prompts"])
    if not source.startswith("self:"):
        return source
    try:
        own, base = pick(SelfPromptSettings, settings), settings.get("target_base")
        written = written_before(source, "train", own, chat, target, base)
    except (ConfigError, DataError):
        # Its system prompt is gone, say, and this bench does not need it.
        return ""
    return "" if written is None else str(written)


def _shared(trained: str, benched: str, prompts: Sequence[Prompt]) -> int:
    """Number of prompts that are in the training's source; all where it is the same source."""
    if trained == benched or (Path(trained).exists() and Path(trained).resolve() == Path(benched).resolve()):
        return len(prompts)
    if not Path(trained).is_file() and not trained.startswith("builtin"):
        return 0
    try:
        known = {_text(prompt) for prompt in load_prompts(trained)}
    except DataError:
        # The file has changed since, and this bench does not need it.
        return 0
    return sum(_text(prompt) in known for prompt in prompts)


def _text(prompt: Prompt) -> str:
    return json.dumps(prompt.messages, sort_keys=True)
