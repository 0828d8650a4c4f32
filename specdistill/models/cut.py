"""A draft made of some of the target's own layers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from specdistill.errors import ConfigError
from specdistill.models import families
from specdistill.models.language_model import LanguageModel


def cut_draft(target: LanguageModel, layers: Sequence[int]) -> LanguageModel:
    """Copies embedding, final norm, output head and the named layers of the target into a new, smaller model.

    Args:
        target: The model to cut from; it is not changed.
        layers: Ascending indices of the layers to keep.

    Returns:
        A model of the same architecture with `len(layers)` layers and weights of its own.

    Raises:
        ConfigError: No layers, more than the target has, or indices that don't ascend within its range.
    """
    total = families.num_layers(target.config)
    if not 1 <= len(layers) < total:
        raise ConfigError(f"a draft needs 1 to {total - 1} of the target's {total} layers, got {len(layers)}")
    if list(layers) != sorted(set(layers)) or layers[0] < 0 or layers[-1] >= total:
        raise ConfigError(f"expected ascending layer indices within 0..{total - 1}, got {list(layers)}")
    config = copy.deepcopy(target.config)
    config.num_hidden_layers = len(layers)
    types = families.layer_attention_types(target.config)
    if types is not None:
        config.layer_types = [types[index] for index in layers]
    if hasattr(config, "max_window_layers"):
        # Qwen numbers the layers that slide; layer_types above already says which do.
        config.max_window_layers = min(config.max_window_layers, len(layers))
    # Built with real (not meta) tensors so that buffers which are computed, not stored (rotary frequencies, embedding
    # scales), are right; then every stored tensor is overwritten by the target's.
    model = AutoModelForCausalLM.from_config(config, dtype=target.model.dtype).to(target.device)
    attribute = families.LAYER_LIST[config.model_type]
    renamed = {f".{attribute}.{position}.": f".{attribute}.{index}." for position, index in enumerate(layers)}
    source = target.model.state_dict()
    state = {}
    for key in model.state_dict():
        match = next((new for new in renamed if new in key), None)
        state[key] = source[key if match is None else key.replace(match, renamed[match], 1)]
    model.load_state_dict(state)
    model.tie_weights()
    model.generation_config = copy.deepcopy(target.model.generation_config)
    name = f"{Path(target.name).stem} cut to layers {','.join(map(str, layers))}"
    return LanguageModel(
        model.eval(), target.tokenizer, name, None, target.vocab_size, stored_dtype=target.stored_dtype
    )


@contextlib.contextmanager
def only_layers(model: LanguageModel, layers: Sequence[int]) -> Iterator[LanguageModel]:
    """Runs the model with some of its layers while the block lasts, without copying weights; caches can't be used."""
    base, config = model.base_model, model.config
    attribute = families.LAYER_LIST[config.model_type]
    every, types = getattr(base, attribute), families.layer_attention_types(config)
    total = config.num_hidden_layers
    try:
        setattr(base, attribute, torch.nn.ModuleList(every[index] for index in layers))
        config.num_hidden_layers = len(layers)
        if types is not None:
            config.layer_types = [types[index] for index in layers]
        yield model
    finally:
        setattr(base, attribute, every)
        config.num_hidden_layers = total
        if types is not None:
            config.layer_types = types
