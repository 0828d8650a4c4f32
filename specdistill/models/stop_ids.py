"""Ids that end an answer, as a model's files name them; checked before any weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from specdistill.errors import ModelError, first_line
from specdistill.models import vocabulary


def eos_ids(source: Any) -> list[int]:
    """Ids of one source, in its order: a generation config, a configuration or a tokenizer; None has none."""
    value = getattr(source, "eos_token_id", None)
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def stored_generation_config(location: str) -> GenerationConfig | None:
    """Reads a checkpoint's generation config: only it lists every id that ends an answer; None where there is none.

    Raises:
        ModelError: The file is broken.
    """
    try:
        return GenerationConfig.from_pretrained(location)
    except Exception as error:
        file = Path(location) / "generation_config.json"
        if isinstance(error, OSError) and not file.is_file():
            return None
        raise ModelError(f"can't read {file}: {first_line(error)}; mend or remove the file") from error


def check_stop_ids(
    name: str, role: str, location: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Refuses a model that could never end an answer, or that is said to end it by an id that it can't write.

    Args:
        name: The name that the user gave.
        role: `target` or `draft`, for messages.
        location: Directory or hub id.
        config, tokenizer: The model's.

    Raises:
        ModelError: There is no stop id, one lies beyond the vocabulary, or the head has rows for none of them.
    """
    sources = {
        "generation_config.json": stored_generation_config(location),
        "config.json": config,
        "the tokenizer": tokenizer,
    }
    size = vocabulary.real_vocab_size(tokenizer)
    named = [(token_id, file) for file, source in sources.items() for token_id in eos_ids(source)]
    if not named:
        raise ModelError(
            f"--{role} {name} has no stop id, so its answers would never end: set eos_token_id in its "
            "generation_config.json to the id that ends an answer"
        )
    for token_id, file in named:
        if not isinstance(token_id, int):
            raise ModelError(
                f"--{role} {name}: {file} names the stop id {token_id!r}, which is no number; set eos_token_id there "
                "to an id that ends an answer"
            )
        if not 0 <= token_id < size:
            raise ModelError(
                f"--{role} {name}: {file} names the stop id {token_id}, which is beyond the vocabulary of {size} ids; "
                "set eos_token_id there to an id that ends an answer"
            )
    # Ids beyond the head are never written; one that is suffices.
    usable = vocabulary.usable_size(tokenizer, int(config.vocab_size))
    if all(token_id >= usable for token_id, _ in named):
        raise ModelError(
            f"--{role} {name}: the stop id {named[0][0]} has no weights, since the head ends at id {usable - 1}, so "
            "its answers would never end: set eos_token_id in its generation_config.json to an id that ends an answer"
        )
