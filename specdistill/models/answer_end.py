"""The id that is written at the end of a given answer or of a document."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from specdistill.models.language_model import LanguageModel
from specdistill.models.stop_ids import eos_ids
from specdistill.settings.chat import TemplateArguments

_ANSWER = "specdistill4answer"
"""Content of the assistant's turn that is rendered; no template contains it."""


def answer_end(model: LanguageModel, arguments: TemplateArguments | None = None) -> int:
    """Id that ends an answer: the one that the chat template writes after an assistant's turn.

    Without a template that ends turns it is the tokenizer's, if the generation config agrees, else the generation
    config's first.

    Args:
        model: Its template and stop ids are looked at.
        arguments: Arguments of the chat template.
    """
    closing = _after_assistant_turn(model.tokenizer, arguments or {})
    stop = model.eos_token_ids
    # What follows the end, such as a line break, belongs to the template and is never written by the model.
    for ending in (stop, set(model.tokenizer.all_special_ids)):
        for token_id in closing:
            if token_id in ending and token_id < model.vocab_size:
                return token_id
    configured = [each for each in eos_ids(getattr(model.model, "generation_config", None)) if each in stop]
    if configured and model.tokenizer.eos_token_id not in configured:
        return configured[0]
    return document_end(model)


def document_end(model: LanguageModel) -> int:
    """Id that ends a document, as in pre-training: the tokenizer's, or the smallest stop id if it has none."""
    own = model.tokenizer.eos_token_id
    return own if isinstance(own, int) and own < model.vocab_size else min(model.eos_token_ids)


def _after_assistant_turn(tokenizer: PreTrainedTokenizerBase, arguments: TemplateArguments) -> list[int]:
    """Ids that the chat template writes after the content of the last turn; none where that can't be told."""
    if not tokenizer.chat_template:
        return []
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    options: Any = dict(arguments)
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
    except Exception:
        # Templates may refuse anything, in whatever way their author chose: such a one says nothing about ends.
        return []
    _, found, closing = str(text).rpartition(_ANSWER)
    return list(tokenizer(closing, add_special_tokens=False)["input_ids"]) if found else []
