"""Finds a model by hub id, directory or .gguf file, and loads its configuration, tokenizer and weights."""

from __future__ import annotations

import contextlib
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

from specdistill.errors import ModelError
from specdistill.models import families, gguf, memory, vocabulary
from specdistill.models.language_model import LanguageModel


@dataclass(frozen=True)
class ModelSource:
    """A model whose files were found and whose configuration and tokenizer were read; no weights yet."""

    name: str
    """As the user wrote it."""
    location: str
    """A directory or hub id that transformers loads from."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @property
    def directory(self) -> Path | None:
        return Path(self.location) if Path(self.location).is_dir() else None


def check_exists(name: str, role: str) -> None:
    """Finds what can be found wrong about a model's name without loading anything (fast, no heavy work).

    Raises:
        ModelError: A path that isn't there, a directory without config.json, a file that is no .gguf.
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


def find(name: str, role: str, say=print) -> ModelSource:
    """Reads configuration and tokenizer; converts a .gguf on first use.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        say: Where a slow conversion announces itself.

    Raises:
        ModelError: It can't be found or read, or its architecture is not supported.
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
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"can't load --{role} {name}: {reason} (a hub id needs network access or a local cache)"
        ) from error
    return ModelSource(name, location, config, tokenizer)


def load_model(
    source: ModelSource | str,
    role: str = "target",
    *,
    device: str = "cpu",
    dtype=torch.float32,
    keep: str = "whole",
    say=print,
) -> LanguageModel:
    """Loads the weights.

    Args:
        source: From `find`, or a name.
        role: `target` or `draft`, for messages.
        device: A torch device.
        dtype: Of the weights.
        keep: `whole`; or, of a model that is never trained, `offloaded`, `int8` or `nf4` (see `memory`).
        say: Where a slow conversion announces itself.

    Returns:
        A `LanguageModel` in eval mode, with a trimmed head if the checkpoint has one.

    Raises:
        ModelError: As `find`.
    """
    if isinstance(source, str):
        source = find(source, role, say)
    # Read before loading: from_pretrained writes the dtype that was asked for into the configuration.
    stored = getattr(source.config, "dtype", None)
    # The bar for one file of weights says nothing that our own lines don't.
    transformers_logging.disable_progress_bar()
    try:
        quantised = memory.loading_arguments(keep, dtype, device)
        model = AutoModelForCausalLM.from_pretrained(source.location, dtype=dtype, config=source.config, **quantised)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"can't load the weights of --{role} {source.name}: {str(error).splitlines()[0]}") from error
    vocab_size = vocabulary.real_vocab_size(source.tokenizer)
    kept_ids = vocabulary.load_kept_ids(source.directory, vocab_size)
    loaded = LanguageModel(
        model=(model if keep != "whole" else _on(model, device)).eval(),
        tokenizer=source.tokenizer,
        name=source.name,
        directory=source.directory,
        vocab_size=vocab_size,
        kept_ids=None if kept_ids is None else kept_ids.to(device),
        stored_dtype=stored if isinstance(stored, torch.dtype) else None,
    )
    _check_head(loaded, role)
    if keep == "offloaded":
        memory.offload(loaded, device)
    return loaded


def load_shell(source: ModelSource, role: str = "target") -> LanguageModel:
    """The model without its weights, on torch's meta device: shapes, tokenizer and stop ids, and next to no memory.

    Args:
        source: From `find`.
        role: `target` or `draft`, for messages.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(source.config)
    # Several ids may end a generation; only this file knows all of them.
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
