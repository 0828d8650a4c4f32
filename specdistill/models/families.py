"""Supported model families: where their layers are, how they mask attention, how they scale logits."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig

from specdistill.errors import ModelError

LAYER_LIST = {
    "llama": "layers",
    "mistral": "layers",
    "qwen2": "layers",
    "qwen3": "layers",
    "gemma": "layers",
    "gemma2": "layers",
    "gemma3_text": "layers",
    "gpt2": "h",
}
"""model_type -> name of the base model's attribute that holds the decoder layers."""


def check_supported(config: PretrainedConfig, name: str) -> None:
    """Refuses architectures whose cache, mask or layers are unknown.

    Raises:
        ModelError: The architecture is not supported.
    """
    if config.model_type not in LAYER_LIST:
        raise ModelError(
            f"{name} is of type {config.model_type!r}, which is not supported; supported are {', '.join(LAYER_LIST)}"
        )


def decoder_layers(base_model: nn.Module, config: PretrainedConfig) -> nn.ModuleList:
    """Decoder layers of a base model, which is a model without its output head."""
    layers = getattr(base_model, LAYER_LIST[config.model_type])
    assert isinstance(layers, nn.ModuleList)
    return layers


def num_layers(config: PretrainedConfig) -> int:
    """Number of decoder layers. transformers maps GPT-2's `n_layer` to the usual name."""
    return int(config.num_hidden_layers)


def num_cached_layers(base_model: nn.Module, config: PretrainedConfig) -> int:
    """Layers that a KV cache needs: more than there are while `cut.only_layers` hides some, whose numbers stay."""
    parts = [part for layer in decoder_layers(base_model, config) for part in layer.children()]
    return max(num_layers(config), 1 + max((getattr(part, "layer_idx", None) or 0 for part in parts), default=0))


def max_context(config: PretrainedConfig) -> int:
    """Largest number of positions that the model supports."""
    return int(config.max_position_embeddings)


def layer_attention_types(config: PretrainedConfig) -> list[str] | None:
    """`full_attention` or `sliding_attention` for each layer; None for families that take a single mask."""
    types = getattr(config, "layer_types", None)
    return list(types) if types else None


def uniform_sliding_window(config: PretrainedConfig) -> int | None:
    """Window of families whose layers all slide and take a single mask (Mistral 7B v0.1); None for others."""
    if layer_attention_types(config) is not None or config.model_type != "mistral":
        return None
    return getattr(config, "sliding_window", None)


def final_softcap(config: PretrainedConfig) -> float | None:
    """Softcap c in logits = c tanh(logits / c), which Gemma 2 has; None for others."""
    return getattr(config, "final_logit_softcapping", None)
