"""Cuts a draft out of some of the target's own layers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from specdistill.errors import ConfigError
from specdistill.models import families
from specdistill.models.language_model import LanguageModel


def cut_draft(target: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """Copies embedding, final norm, output head and the named layers of the target into a new, smaller model.

    Args:
        target: The model to cut from; it is not changed.
        layers: Ascending indices of the layers to keep.

    Returns:
        A model of the same architecture with `len(layers)` layers, whose weights are copies.

    Raises:
        ConfigError: `layers` is empty, names all layers or more, or does not ascend within the target's range.
    """
    total = families.num_layers(target.config)
    if not 1 <= len(layers) < total:
        raise ConfigError(f"a draft needs 1 to {total - 1} of the target's {total} layers, got {len(layers)}")
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise ConfigError(f"expected ascending layer indices within 0..{total - 1}, got {list(layers)}")
    # Built with real tensors, not on the meta device: buffers that are computed and never stored (rotary frequencies,
    # embedding scales) are then right. Every stored tensor is overwritten by the target's.
    model = AutoModelForCausalLM.from_config(_cut_config(target.config, layers), dtype=target.model.dtype)
    model = model.to(target.device)
    model.load_state_dict(_cut_weights(target, layers, model.state_dict().keys()))
    model.tie_weights()
    model.generation_config = copy.deepcopy(target.model.generation_config)
    name = f"{Path(target.name).stem} cut to layers {','.join(map(str, layers))}"
    return LanguageModel(
        model.eval(), target.tokenizer, name, None, target.vocab_size, stored_dtype=target.stored_dtype
    )


def _cut_config(target_config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    config = copy.deepcopy(target_config)
    # The cut's weights are plain, so that its files must not claim a quantisation.
    vars(config).pop("quantization_config", None)
    config.num_hidden_layers = len(layers)
    types = families.layer_attention_types(target_config)
    if types is not None:
        config.layer_types = [types[index] for index in layers]
    if hasattr(config, "max_window_layers"):
        # Qwen's number of sliding layers must not exceed the layers; layer_types already says which ones slide.
        config.max_window_layers = min(config.max_window_layers, len(layers))
    return config


def _cut_weights(target: LanguageModel, layers: Sequence[int], names: Iterable[str]) -> dict[str, Tensor]:
    """The target's weights under the draft's names, whose layers are numbered from 0."""
    layer_list = families.layers_path(target.base_model, target.config)
    prefixes = {f".{layer_list}.{position}.": f".{layer_list}.{index}." for position, index in enumerate(layers)}
    source = target.model.state_dict()
    weights = {}
    for name in names:
        prefix = next((prefix for prefix in prefixes if prefix in name), None)
        weights[name] = source[name if prefix is None else name.replace(prefix, prefixes[prefix], 1)]
    return weights


@contextlib.contextmanager
def only_layers(model: LanguageModel, layers: Sequence[int]) -> Iterator[LanguageModel]:
    """Removes the other layers from the model inside the block, without copying weights; `CachedModel` runs it too."""
    base, config = model.base_model, model.config
    parent_path, _, name = families.layers_path(base, config).rpartition(".")
    parent, types = base.get_submodule(parent_path), families.layer_attention_types(config)
    all_layers = getattr(parent, name)
    total = config.num_hidden_layers
    try:
        setattr(parent, name, torch.nn.ModuleList(all_layers[index] for index in layers))
        config.num_hidden_layers = len(layers)
        if types is not None:
            config.layer_types = [types[index] for index in layers]
        yield model
    finally:
        setattr(parent, name, all_layers)
        config.num_hidden_layers = total
        if types is not None:
            config.layer_types = types
