"""Finds a model by hub id, directory or .gguf file, and loads its configuration, tokenizer and weights."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from specdistill.errors import ModelError, first_line
from specdistill.files import checkpoint_files
from specdistill.models import families, gguf, memory, multimodal, quantised, stop_ids, vocabulary, weights
from specdistill.models.language_model import LanguageModel
from specdistill.models.quiet import quiet_hub, quiet_transformers


@dataclass(frozen=True)
class ModelSource:
    """A model whose configuration and tokenizer are loaded, and whose weights are not."""

    name: str
    """The name that the user gave."""
    location: str
    """Directory or hub id that transformers loads from."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    inside: bool = False
    """Whether it is the text part of a multimodal checkpoint, which is loaded without the rest."""

    @property
    def max_context(self) -> int:
        """Largest number of positions that the model supports."""
        return families.max_context(self.config)

    @property
    def directory(self) -> Path | None:
        """Directory of the files; None for a hub id."""
        return Path(self.location) if Path(self.location).is_dir() else None

    @property
    def rows(self) -> int:
        """Rows of the embedding and of the output head: ids from here on have no weights."""
        return int(self.config.vocab_size)

    @property
    def vocab_size(self) -> int:
        """Number of ids that the tokenizer produces and the model has weights for."""
        return vocabulary.usable_size(self.tokenizer, self.rows)


def check_exists(name: str, role: str) -> None:
    """Checks a model's name without loading anything.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: A path does not exist, a directory holds an adapter or no config.json, or a file is not a .gguf.
    """
    path = Path(name)
    if path.is_dir():
        checkpoint_files.check_directory(path, name, role)
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"--{role} {name} is a file but no .gguf; name a checkpoint directory or a .gguf file")
        gguf.check_gguf(path)
    else:
        checkpoint_files.check_hub_id(name, role)


def find(name: str, role: str, say: Callable[[str], None] = print) -> ModelSource:
    """Loads a model's configuration and tokenizer. Converts a .gguf when it is first used.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        say: Called with a line of text when a slow conversion starts.

    Raises:
        ModelError: The model can't be found or read, is no causal one, or a target can't end answers.
    """
    check_exists(name, role)
    location = str(gguf.convert(Path(name), say) if Path(name).is_file() else name)
    try:
        with quiet_transformers(), quiet_hub():
            outer = AutoConfig.from_pretrained(location, trust_remote_code=False)
            config = families.text_part(outer)
            families.check_causal(config, name)
            if Path(location).is_dir():
                checkpoint_files.check_tokenizer(Path(location), name, role)
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_why_not(error, location, name, role)) from error
    source = ModelSource(name, location, config, tokenizer, inside=config is not outer)
    vocabulary.check_ordinary_tokens(tokenizer, source.rows, f"--{role} {name}")
    if role == "target":
        stop_ids.check_stop_ids(name, role, location, config, tokenizer)
    return source


def _why_not(error: Exception, location: str, name: str, role: str) -> str:
    """Says why configuration or tokenizer can't be loaded, with the remedy for that cause."""
    directory = Path(location)
    if "trust_remote_code" in str(error):
        return (
            f"--{role} {name} needs Python code from its own files (auto_map in its JSON files), which is never run; "
            "name a checkpoint of an architecture and a tokenizer that transformers has"
        )
    if directory.is_dir():
        only_pieces = (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file()
        if only_pieces and importlib.util.find_spec("sentencepiece") is None:
            needed = "pip install sentencepiece protobuf"
            return f"--{role} {name} holds its tokenizer as tokenizer.model, which needs: {needed}"
        return f"can't load --{role} {name}: {first_line(error)}; check the JSON and tokenizer files in the directory"
    # A hub that just was out of reach is not asked again: the library tries for 20 seconds each time.
    adapter = _cached(location, checkpoint_files.ADAPTER_FILE, ask_hub=not _out_of_reach(error))
    if adapter is not None:
        checkpoint_files.refuse_adapter(adapter, name, role)
    # A hub id's owner is seldom a folder here, but a mistyped directory's parent is one.
    mistyped = "there is no directory of that name here, and as a hub id: " if directory.parent.is_dir() else ""
    return f"can't load --{role} {name}: {mistyped}{first_line(error)} (a hub id needs network access or a local cache)"


def _out_of_reach(error: BaseException | None) -> bool:
    """Whether the hub could not be asked, by the error or what caused it."""
    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    return error is not None


def _cached(location: str, file: str, *, ask_hub: bool = True) -> Path | None:
    """A file of a hub id, from the network or the local cache; None if there is none, or if this is no hub id."""
    try:
        with quiet_hub():
            found = cached_file(
                location,
                file,
                local_files_only=not ask_hub,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
    except OSError:
        return None
    return None if found is None else Path(found)


def check_loadable(source: ModelSource, role: str, keep: str = "whole", *, plain: bool = False) -> None:
    """Checks that a model's weights are there and can be read on this machine. Reads none of them.

    Args:
        source: Result of `find`.
        role: `target` or `draft`, for messages.
        keep: As in `load_model`.
        plain: Whether the weights will be cut, trained or written, which takes ordinary floats.

    Raises:
        ModelError: Weights are missing or pickles, or their quantisation can't be loaded or does not fit the purpose.
    """
    where = f"--{role} {source.name}"
    if source.directory is not None:
        checkpoint_files.check_weights(source.directory, source.name, role)
        side = source.directory / "hf_quant_config.json"
    else:
        side = _cached(source.location, "hf_quant_config.json")
    text = side.read_text() if side is not None and side.is_file() else None
    quantised.check(source.config, text, where)
    if plain:
        quantised.check_plain(source.config, where)
    method = quantised.method_of(source.config)
    if method is None and source.directory is not None:
        checkpoint_files.refuse_integers(source.directory, where)
    if method is not None and keep in memory.QUANTISED:
        raise ModelError(f"{where} is quantised already, by {method}; leave out --target-memory {keep}")


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
        ModelError: The model can't be found or read, is no causal one, or its weights are not the architecture's own,
            not finite, or quantised in a way that can't be read here.
    """
    source = find(source, role, say) if isinstance(source, str) else source
    check_loadable(source, role, keep)
    # Read first, because from_pretrained overwrites the configuration's dtype.
    stored_dtype = getattr(source.config, "dtype", None)
    model = _read_weights(source, role, device, dtype, keep)
    vocab_size = vocabulary.usable_size(source.tokenizer, model.config.vocab_size)
    kept_ids = vocabulary.load_kept_ids(source.directory, vocab_size)
    if keep == "whole" and not quantised.stays(source.config):
        # transformers' own annotation of `to` does not take a device's name.
        torch.nn.Module.to(model, device)
    loaded = LanguageModel(
        model=model.eval(),
        tokenizer=source.tokenizer,
        name=source.name,
        directory=source.directory,
        vocab_size=vocab_size,
        kept_ids=None if kept_ids is None else kept_ids.to(device),
        stored_dtype=stored_dtype if isinstance(stored_dtype, torch.dtype) else None,
    )
    if keep == "offloaded":
        memory.offload(loaded, device)
    return loaded.with_logit_scale()


def _read_weights(source: ModelSource, role: str, device: str, dtype: torch.dtype, keep: str) -> PreTrainedModel:
    """Reads the weights, and refuses them if they are not exactly the architecture's own."""
    # Our own messages already say what is loaded.
    transformers_logging.disable_progress_bar()
    quantisation = memory.quantisation(keep, dtype) or quantised.loading_settings(source.config)
    method = quantised.method_of(source.config)
    # Quantised weights can't be moved later.
    placed = keep in memory.QUANTISED or quantised.stays(source.config)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.location,
                dtype=dtype,
                config=source.config,
                quantization_config=quantisation,
                device_map={"": device} if placed else None,
                use_safetensors=True,
                trust_remote_code=False,
                # Other shapes are reported, and refused below with the weight's name.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                key_mapping=multimodal.KEY_MAPPING if source.inside else None,
            )
        model, report = loaded
    except Exception as error:
        raise ModelError(f"can't load the weights of --{role} {source.name}: {first_line(error)}") from error
    where = f"--{role} {source.name}"
    weights.check_report(report, where, dequantised=method in quantised.DEQUANTISED, inside=source.inside)
    if method in quantised.DEQUANTISED:
        # transformers leaves what was not quantised in the dtype of the files.
        torch.nn.Module.to(model, dtype)
    weights.check_finite(model, where)
    return model


def load_shell(source: ModelSource, role: str = "target") -> LanguageModel:
    """Builds a model without weights on torch's meta device: shapes, tokenizer and stop ids, at almost no memory.

    Args:
        source: Result of `find`.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: transformers can't build the model from its configuration.
    """
    config = copy.deepcopy(source.config)
    vars(config).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"can't build --{role} {source.name} from its config.json: {first_line(error)}") from error
    stored = stop_ids.stored_generation_config(source.location)
    if stored is not None:
        model.generation_config = stored
    vocab_size = vocabulary.usable_size(source.tokenizer, source.rows)
    return LanguageModel(model.eval(), source.tokenizer, source.name, source.directory, vocab_size)
