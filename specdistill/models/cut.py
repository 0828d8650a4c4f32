"""Cuts a draft out of some of the target's own layers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from specdistill.errors import ConfigError, ModelError, first_line
from specdistill.models import families
from specdistill.models.language_model import LanguageModel

_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
"""Settings that count the first layers, which have no experts."""
_NUMBERS = ("moe_layers", "attn_layer_indices")
"""Settings that list the numbers of some layers."""
_NO_LAYERS = ("eos_token_id", "architectures")
"""Lists that may have as many entries as there are layers, by chance."""


def cut_draft(target: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """Copies embedding, final norm, output head and the named layers of the target into a new, smaller model.

    Args:
        target: The model to cut from; it is not changed.
        layers: Ascending indices of the layers to keep.

    Returns:
        A model of the same architecture with `len(layers)` layers, whose weights are copies.

    Raises:
        ConfigError: `layers` is empty, names all layers or more, or does not ascend within the target's range.
        ModelError: The architecture's layers differ in a way that is not known.
    """
    total = families.num_layers(target.config)
    if not 1 <= len(layers) < total:
        raise ConfigError(f"a draft needs 1 to {total - 1} of the target's {total} layers, got {len(layers)}")
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise ConfigError(f"expected ascending layer indices within 0..{total - 1}, got {list(layers)}")
    # Built with real tensors, not on the meta device: buffers that are computed and never stored (rotary frequencies,
    # embedding scales) are then right. Every stored tensor is overwritten by the target's.
    try:
        model = AutoModelForCausalLM.from_config(_cut_config(target.config, layers), dtype=target.model.dtype)
        model = model.to(target.device)
        model.load_state_dict(_cut_weights(target, layers, model.state_dict().keys()))
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"layers can't be cut out of a {target.config.model_type!r} model, whose layers differ in a way that its "
            f"configuration does not name one by one ({first_line(error)}); name a smaller sibling as draft"
        ) from error
    model.tie_weights()
    model.generation_config = copy.deepcopy(target.model.generation_config)
    name = f"{Path(target.name).stem} cut to layers {','.join(map(str, layers))}"
    return LanguageModel(
        model.eval(), target.tokenizer, name, None, target.vocab_size, stored_dtype=target.stored_dtype
    )


def _cut_config(target_config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    rebuilt = getattr(target_config, "is_heterogeneous", False)
    config = _rebuilt(target_config, layers) if rebuilt else copy.deepcopy(target_config)
    # The cut's weights are plain, so that its files must not claim a quantisation.
    vars(config).pop("quantization_config", None)
    config.num_hidden_layers = len(layers)
    for name, values in _per_layer(target_config).items():
        setattr(config, name, [values[index] for index in layers])
    for name in _NUMBERS:
        if getattr(target_config, name, None) is not None:
            numbers = getattr(target_config, name)
            setattr(config, name, [place for place, index in enumerate(layers) if index in numbers])
    for name in _FIRST_LAYERS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, sum(index < getattr(target_config, name) for index in layers))
    if hasattr(config, "max_window_layers"):
        # Qwen's number of sliding layers must not exceed the layers; layer_types already says which ones slide.
        config.max_window_layers = min(config.max_window_layers, len(layers))
    return config


def _rebuilt(target_config: PretrainedConfig, layers: Sequence[int]) -> PretrainedConfig:
    """A configuration whose layers have settings of their own (Gemma 4): made anew, with those of the layers kept."""
    stored: dict[str, Any] = target_config.to_dict()
    own = {int(index): settings for index, settings in stored.pop("per_layer_config").items()}
    kept = {place: own[index] for place, index in enumerate(layers) if index in own}
    for name, values in _per_layer(target_config).items():
        stored[name] = [values[index] for index in layers]
    stored |= {"num_hidden_layers": len(layers), "per_layer_config": kept}
    return type(target_config)(**stored)


def _per_layer(config: PretrainedConfig) -> dict[str, list[Any]]:
    """Settings that name something for each layer."""
    total = families.num_layers(config)
    return {
        name: list(value)
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == total and name not in (*_NO_LAYERS, *_NUMBERS)
    }


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
    parent, settings = base.get_submodule(parent_path), _per_layer(config)
    all_layers, total = getattr(parent, name), config.num_hidden_layers
    try:
        setattr(parent, name, torch.nn.ModuleList(all_layers[index] for index in layers))
        config.num_hidden_layers = len(layers)
        for setting, values in settings.items():
            setattr(config, setting, [values[index] for index in layers])
        yield model
    finally:
        setattr(parent, name, all_layers)
        config.num_hidden_layers = total
        for setting, values in settings.items():
            setattr(config, setting, values)
