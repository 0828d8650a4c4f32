"""Finds a model by hub id, directory or .gguf file, and loads its configuration, tokenizer and weights."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from specdistill.errors import ModelError, first_line
from specdistill.files import checkpoint_files
from specdistill.files.adapters import Adapter
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import adapters, families, gguf, memory, multimodal, quantised, stop_ids, vocabulary, weights
from specdistill.models.hub_files import cached
from specdistill.models.language_model import LanguageModel
from specdistill.models.load_errors import out_of_reach, why_not
from specdistill.models.quiet import quiet_bars, quiet_hub, quiet_transformers


@dataclass(frozen=True)
class ModelSource:
    """A model whose configuration and tokenizer are loaded, and whose weights are not."""

    name: str
    """The name that the user gave."""
    location: str
    """Directory or hub id that transformers loads from; for an adapter the files of the merged model but its
    weights."""
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    inside: bool = False
    """Whether it is the text part of a multimodal checkpoint, which is loaded without the rest."""
    adapter: Adapter | None = None
    """The adapter that is merged into its base; None for a whole model."""

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


def check_exists(name: str, role: str, base: str | None = None) -> None:
    """Checks a model's name without loading anything.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        base: Base of an adapter, as the user named it.

    Raises:
        ModelError: A path does not exist, a directory holds no model, a file is not a .gguf, or an adapter can't be
            merged.
    """
    path = Path(name)
    if adapters.check_name(name, role, base):
        return
    if path.is_dir():
        checkpoint_files.check_directory(path, name, role)
    elif path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"--{role} {name} is a file but no .gguf; name a checkpoint directory or a .gguf file")
        gguf.check_gguf(path)
    else:
        checkpoint_files.check_hub_id(name, role)


def find(name: str, role: str, say: Callable[[str], None] = print, base: str | None = None) -> ModelSource:
    """Loads a model's configuration and tokenizer. Converts a .gguf when it is first used.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        say: Called with a line of text when a slow conversion starts.
        base: Base of an adapter, as the user named it.

    Raises:
        ModelError: The model can't be found or read, is no causal one, or a target can't end answers.
    """
    check_exists(name, role, base)
    adapter = adapters.find(name, role, base)
    try:
        source = _read(name, role, adapter, say)
    except ModelError as error:
        # A hub that just was out of reach is not asked again: the library tries for 20 seconds each time.
        if adapter is not None or not adapters.on_hub(name, ask=not out_of_reach(error)):
            raise
        source = None
    if source is None or (adapter is None and adapters.on_hub(name)):
        source = _read(name, role, adapters.fetch(name, role, base), say)
    if source.adapter is None and base is not None:
        raise adapters.no_adapter(name, base)
    return source


def _read(name: str, role: str, adapter: Adapter | None, say: Callable[[str], None]) -> ModelSource:
    location = str(gguf.convert(Path(name), say) if Path(name).is_file() else adapter.joined if adapter else name)
    try:
        with quiet_transformers(), quiet_hub():
            outer = AutoConfig.from_pretrained(location, trust_remote_code=False)
            config = families.text_part(outer)
            families.check_causal(config, name)
            families.check_experts(config, name)
            ParallelDrafting.of_config(config, f"--{role} {name}")
            if Path(location).is_dir():
                checkpoint_files.check_tokenizer(Path(location), name, role)
            tokenizer = AutoTokenizer.from_pretrained(location, trust_remote_code=False)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(why_not(error, location, name, role)) from error
    source = ModelSource(name, location, config, tokenizer, inside=config is not outer, adapter=adapter)
    vocabulary.check_ordinary_tokens(tokenizer, source.rows, f"--{role} {name}")
    if role == "target":
        stop_ids.check_stop_ids(name, role, location, config, tokenizer)
    return source


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
    if source.adapter is not None:
        adapters.check_loadable(source.adapter, role, keep)
        return
    if source.directory is not None:
        checkpoint_files.check_weights(source.directory, source.name, role)
        side = source.directory / "hf_quant_config.json"
    else:
        side = cached(source.location, "hf_quant_config.json")
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
        adapter=source.adapter,
        vocab_size=vocab_size,
        kept_ids=None if kept_ids is None else kept_ids.to(device),
        stored_dtype=stored_dtype if isinstance(stored_dtype, torch.dtype) else None,
    )
    if keep == "offloaded":
        memory.offload(loaded, device)
    if keep in memory.QUANTISED or quantised.stays(source.config):
        loaded.parameters = load_shell(source, role).num_parameters
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
        with quiet_transformers(), quiet_bars() if method == "compressed-tensors" else contextlib.nullcontext():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.location if source.adapter is None else source.adapter.base,
                dtype=dtype,
                config=source.config if source.adapter is None else _base_config(source.adapter),
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
    quantised.unpack(model, source.config)
    if source.adapter is not None:
        model = adapters.merge(model, source.adapter, where)
    weights.check_finite(model, where)
    return model


def _base_config(adapter: Adapter) -> PretrainedConfig:
    """Configuration of an adapter's base, which has its own number of ids; of its text part where it has others."""
    return families.text_part(AutoConfig.from_pretrained(adapter.base, trust_remote_code=False))


def load_shell(source: ModelSource, role: str = "target") -> LanguageModel:
    """Builds a model without weights on torch's meta device: shapes, tokenizer and stop ids, at almost no memory.

    Args:
        source: Result of `find`.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: transformers can't build the model from its configuration.
    """
    config = copy.deepcopy(source.config)
    for name in ("quantization_config", "compression_config"):
        vars(config).pop(name, None)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"can't build --{role} {source.name} from its config.json: {first_line(error)}") from error
    stored = stop_ids.stored_generation_config(source.location)
    if stored is not None:
        model.generation_config = stored
    vocab_size = vocabulary.usable_size(source.tokenizer, source.rows)
    return LanguageModel(
        model.eval(), source.tokenizer, source.name, source.directory, vocab_size, adapter=source.adapter
    )
