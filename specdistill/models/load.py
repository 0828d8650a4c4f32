"""Finds a model by hub id, directory or .gguf file, and loads its configuration, tokenizer and weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from specdistill.errors import ModelError, first_line
from specdistill.models import families, gguf, memory, vocabulary
from specdistill.models.language_model import LanguageModel


@dataclass(frozen=True)
class ModelSource:
    """A model whose configuration and tokenizer are loaded, and whose weights are not."""

    name: str
    """The name that the user gave."""
    location: str
    """Directory or hub id that transformers loads from."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def max_context(self) -> int:
        """Largest number of positions that the model supports."""
        return families.max_context(self.config)

    @property
    def directory(self) -> Path | None:
        """Directory of the files; None for a hub id."""
        return Path(self.location) if Path(self.location).is_dir() else None


def check_exists(name: str, role: str) -> None:
    """Checks a model's name without loading anything.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: A path does not exist, a directory has no config.json, or a file is not a .gguf.
    """
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"--{role} {name} has no config.json; name a directory that save_pretrained wrote")
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"--{role} {name} is a file but no .gguf; name a checkpoint directory or a .gguf file")
        gguf.check_gguf(path)
    elif path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"--{role} {name} does not exist; name a hub id, a checkpoint directory or a .gguf file")


def find(name: str, role: str, say: Callable[[str], None] = print) -> ModelSource:
    """Loads a model's configuration and tokenizer. Converts a .gguf when it is first used.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        say: Called with a line of text when a slow conversion starts.

    Raises:
        ModelError: The model can't be found or read, or its architecture is not supported.
    """
    check_exists(name, role)
    path = Path(name)
    location = str(gguf.convert(path, say) if path.is_file() else name)
    try:
        config = AutoConfig.from_pretrained(location)
        families.check_supported(config, name)
        tokenizer = AutoTokenizer.from_pretrained(location)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"can't load --{role} {name}: {first_line(error)} (a hub id needs network access or a local cache)"
        ) from error
    return ModelSource(name, location, config, tokenizer)


def load_model(
    source: ModelSource | str,
    role: str = "target",
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    keep: str = "whole",
    say: Callable[[str], None] = print,
) -> LanguageModel:
    """Loads a model with its weights.

    Args:
        source: Result of `find`, or a name for it.
        role: `target` or `draft`, for messages.
        device: A torch device.
        dtype: dtype of the weights.
        keep: `whole`, or for a model that is never trained `offloaded`, `int8` or `nf4` (see `memory`).
        say: Called with a line of text when a slow conversion starts.

    Returns:
        A `LanguageModel` in eval mode, with a trimmed head if the checkpoint has one.

    Raises:
        ModelError: The model can't be found or read, its architecture is not supported, or its head is too small.
    """
    if isinstance(source, str):
        source = find(source, role, say)
    # Read first, because from_pretrained overwrites the configuration's dtype.
    stored_dtype = getattr(source.config, "dtype", None)
    # Our own messages already say what is loaded.
    transformers_logging.disable_progress_bar()
    try:
        quantisation = memory.quantisation(keep, dtype)
        model = AutoModelForCausalLM.from_pretrained(
            source.location,
            dtype=dtype,
            config=source.config,
            quantization_config=quantisation,
            # Quantised weights can't be moved later.
            device_map=None if quantisation is None else {"": device},
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"can't load the weights of --{role} {source.name}: {first_line(error)}") from error
    vocab_size = vocabulary.real_vocab_size(source.tokenizer)
    kept_ids = vocabulary.load_kept_ids(source.directory, vocab_size)
    loaded = LanguageModel(
        model=(model if keep != "whole" else _on(model, device)).eval(),
        tokenizer=source.tokenizer,
        name=source.name,
        directory=source.directory,
        vocab_size=vocab_size,
        kept_ids=None if kept_ids is None else kept_ids.to(device),
        stored_dtype=stored_dtype if isinstance(stored_dtype, torch.dtype) else None,
    )
    _check_head(loaded, role)
    if keep == "offloaded":
        memory.offload(loaded, device)
    return loaded


def load_shell(source: ModelSource, role: str = "target") -> LanguageModel:
    """Builds a model without weights on torch's meta device: shapes, tokenizer and stop ids, at almost no memory.

    Args:
        source: Result of `find`.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: The head has fewer rows than the tokenizer has ids.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(source.config)
    # Only the generation config lists every id that ends an answer.
    with contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(source.location)
    vocab_size = vocabulary.real_vocab_size(source.tokenizer)
    shell = LanguageModel(model.eval(), source.tokenizer, source.name, source.directory, vocab_size)
    _check_head(shell, role)
    return shell


def _check_head(model: LanguageModel, role: str) -> None:
    rows = model.head_weight.shape[0]
    if model.vocab_size > rows:
        raise ModelError(
            f"--{role} {model.name}: the tokenizer produces {model.vocab_size} ids but the head has {rows} rows; the "
            "tokenizer files belong to another model"
        )


def _on(model: PreTrainedModel, device: str) -> PreTrainedModel:
    # transformers' own annotation of `to` does not take a device's name.
    torch.nn.Module.to(model, device)
    return model
