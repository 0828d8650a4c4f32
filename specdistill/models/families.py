"""The decoder families whose parts we know by name: where the layers are, how they mask, how they scale logits."""

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
"""model_type -> attribute of the base model that holds the decoder layers."""


def check_supported(config: PretrainedConfig, name: str) -> None:
    """Refuses architectures whose cache, mask or layers we would have to guess.

    Raises:
        ModelError: Naming the architecture and the supported ones.
    """
    if config.model_type not in LAYER_LIST:
        raise ModelError(
            f"{name} is of type {config.model_type!r}, which is not supported; supported are {', '.join(LAYER_LIST)}"
        )


def decoder_layers(base_model: nn.Module, config: PretrainedConfig) -> nn.ModuleList:
    """The list of decoder layers inside a base model (without the output head)."""
    layers = getattr(base_model, LAYER_LIST[config.model_type])
    assert isinstance(layers, nn.ModuleList)
    return layers


def num_layers(config: PretrainedConfig) -> int:
    """How many decoder layers the configuration asks for (GPT-2's `n_layer` is mapped by transformers)."""
    return int(config.num_hidden_layers)


def max_context(config: PretrainedConfig) -> int:
    """Positions that the model was made for."""
    return int(config.max_position_embeddings)


def layer_attention_types(config: PretrainedConfig) -> list[str] | None:
    """`full_attention` or `sliding_attention` per layer where the family mixes them in one mask dict, else None."""
    types = getattr(config, "layer_types", None)
    return list(types) if types else None


def uniform_sliding_window(config: PretrainedConfig) -> int | None:
    """The window of families that slide in every layer and take a single mask (Mistral 7B v0.1)."""
    if layer_attention_types(config) is not None or config.model_type != "mistral":
        return None
    return getattr(config, "sliding_window", None)


def final_softcap(config: PretrainedConfig) -> float | None:
    """c of logits = c tanh(logits / c), where the family has one (Gemma 2)."""
    return getattr(config, "final_logit_softcapping", None)
