"""Whether a bench's texts look like those of the draft's training: their chat template, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt, encode, load_prompts
from specdistill.errors import DataError
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.training_prompts import training_source
from specdistill.files import run_settings
from specdistill.models.pair import FoundPair
from specdistill.settings.chat import ChatSettings
from specdistill.settings.parts import pick

_SHARE = 0.05
"""Share of the judged tokens with a longer context than any trained text, from which on it is worth a sentence."""
_LONGEST_PROMPTS = 200
"""Prompts of the training that are encoded: those with the most characters."""


def unlike_training(config: MeasureConfig, found: FoundPair, answers: Sequence[Example]) -> list[str]:
    """Sentences on what differs from the draft's training, by the settings in its directory; empty where nothing does.

    Args:
        config: Draft, and how prompts are rendered.
        found: Tokenizers of target and draft.
        answers: The judged texts.
    """
    directory = Path(found.draft.name)
    settings = run_settings.read(directory) if run_settings.exists(directory) else {}
    if not isinstance(settings.get("prompts"), str):
        return []
    remarks = (_other_template(config, found, settings), _longer(config, found, settings, answers))
    return [remark for remark in remarks if remark is not None]


def _other_template(config: MeasureConfig, found: FoundPair, settings: run_settings.FlatSettings) -> str | None:
    """A trained draft keeps the tokenizer files that its target had."""
    trained, benched = (source.tokenizer.chat_template for source in (found.draft, found.target))
    if config.chat.raw_prompts or settings.get("raw_prompts") or trained == benched:
        return None
    return (
        f"the chat template of {config.target} is not the one that {found.draft.name} was trained with, so it sees "
        "other texts here; serve with the template of its directory, or train it again with this one"
    )


def _longer(
    config: MeasureConfig, found: FoundPair, settings: run_settings.FlatSettings, answers: Sequence[Example]
) -> str | None:
    trained = _longest_text(config, found, settings)
    contexts = [len(answer.prompt_ids) + place for answer in answers for place in range(len(answer.answer_ids))]
    if trained is None or not contexts:
        return None
    share = sum(context >= trained for context in contexts) / len(contexts)
    if share < _SHARE:
        return None
    return (
        f"{share:.0%} of the judged tokens have a longer context (up to {max(contexts):,} tokens) than any text that "
        f"{found.draft.name} was trained on ({trained:,}: its longest prompt and --max-new-tokens); train on prompts "
        "as long as those that you serve"
    )


def _longest_text(config: MeasureConfig, found: FoundPair, settings: run_settings.FlatSettings) -> int | None:
    """Tokens of the longest text of the training; None where its prompts are gone, elsewhere, or not what it read."""
    answer = settings.get("max_new_tokens")
    if settings.get("text") is not None or settings.get("online") is not None or not isinstance(answer, int):
        return None
    chat: ChatSettings = pick(ChatSettings, settings)
    source = training_source(settings, chat, config.target)
    if not Path(source).is_file() and not source.startswith("builtin"):
        return None
    try:
        prompts = sorted(load_prompts(source, chat), key=_characters, reverse=True)[:_LONGEST_PROMPTS]
        return max(len(encode(prompt, found.target.tokenizer)) for prompt in prompts) + answer
    except DataError:
        # The file has changed since, and this bench does not need it.
        return None


def _characters(prompt: Prompt) -> int:
    return sum(len(str(message.get("content"))) for message in prompt.messages)
