"""Facts about a model's architecture, read from its structure and its configuration, never from its name."""

from __future__ import annotations

import copy

from torch import nn
from transformers import PretrainedConfig
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from specdistill.errors import ModelError
from specdistill.files.head_architectures import draft_kind

NO_LIMIT = 2**20
"""Positions of a model whose configuration names no limit, such as one without attention."""
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")


def check_causal(config: PretrainedConfig, name: str) -> None:
    """Refuses what is no causal language model.

    Raises:
        ModelError: transformers has no causal model of this type, the model reads its prompt with an encoder, or it is
            a head for another model.
    """
    kind = config.model_type
    head = draft_kind(getattr(config, "architectures", None), None)
    if head is not None:
        raise ModelError(
            f"{name} is a head ({head}), which writes nothing without its target; specdistill runs EAGLE-3 heads as "
            "--draft beside it, and other heads run in vLLM"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"{name} is of type {kind!r}, of which transformers has no causal language model; name a checkpoint that "
            "AutoModelForCausalLM loads"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is of type {kind!r}, which reads prompts with an encoder; name a model that only decodes"
        )


def check_experts(config: PretrainedConfig, name: str) -> None:
    """Refuses a mixture whose numbers of experts can't be.

    Raises:
        ModelError: Each token takes none, or more than there are.
    """
    taken = getattr(config, "num_experts_per_tok", None)
    counts = [getattr(config, field, None) for field in ("num_local_experts", "num_experts", "n_routed_experts")]
    there = next((count for count in counts if isinstance(count, int) and count > 0), None)
    if there is not None and isinstance(taken, int) and not 1 <= taken <= there:
        raise ModelError(
            f"{name} sends each token to {taken} of {there} experts; num_experts_per_tok in its config.json must be "
            f"1 to {there}"
        )


def text_part(config: PretrainedConfig) -> PretrainedConfig:
    """Configuration of the language model inside a multimodal one; the same one where it is nothing else."""
    text = config.get_text_config(decoder=True)
    if text is config:
        return config
    text = copy.deepcopy(text)
    # The outer file says how all weights are stored, and whether the head is the embedding.
    for name in ("tie_word_embeddings", "quantization_config", "dtype", "eos_token_id"):
        value = getattr(config, name, None)
        if value is not None:
            setattr(text, name, value)
    return text


def layers_path(base_model: nn.Module, config: PretrainedConfig) -> str:
    """Dotted name of the decoder layers inside a base model: of all lists of that length the one with most weights.

    Raises:
        ModelError: No list has as many members as the configuration has layers.
    """
    lists = {
        name: sum(parameter.numel() for parameter in module.parameters())
        for name, module in base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_layers(config)
    }
    if not lists:
        raise ModelError(
            f"the decoder layers of a {config.model_type!r} model can't be found: no list of modules has "
            f"{num_layers(config)} members, the number of layers in config.json"
        )
    return max(lists, key=lambda name: lists[name])


def decoder_layers(base_model: nn.Module, config: PretrainedConfig) -> nn.ModuleList:
    """Decoder layers of a base model, which is a model without its output head."""
    layers = base_model.get_submodule(layers_path(base_model, config))
    assert isinstance(layers, nn.ModuleList)
    return layers


def num_layers(config: PretrainedConfig) -> int:
    """Number of decoder layers. transformers maps GPT-2's `n_layer` to the usual name."""
    return int(config.num_hidden_layers)


def max_context(config: PretrainedConfig) -> int:
    """Largest number of positions that the model supports."""
    limits = (getattr(config, name, None) for name in _CONTEXT)
    return next((int(limit) for limit in limits if limit), NO_LIMIT)


def layer_attention_types(config: PretrainedConfig) -> list[str] | None:
    """Kind of each layer, such as `full_attention` or `linear_attention`; None where they aren't named one by one."""
    types = getattr(config, "layer_types", None)
    return list(types) if types else None


def attention_kinds(config: PretrainedConfig) -> set[str]:
    """Every kind of attention mask that the layers need; the rules are transformers' own.

    Without a kind for each layer, a window or a chunk size in the configuration holds for all of them.
    """
    types = layer_attention_types(config)
    if types is not None:
        return set(types)
    if getattr(config, "sliding_window", None) is not None:
        return {"sliding_attention"}
    return {"chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"}


def recurrent_kinds(config: PretrainedConfig) -> list[str]:
    """Kinds of the layers that keep a state instead of each token's keys and values; empty for plain attention."""
    types, layers = layer_attention_types(config), cache_layers(config)
    recurrent = [isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers]
    if types is None or len(types) != len(layers):
        return ["linear_attention"] if any(recurrent) else []
    return sorted({kind for kind, recurs in zip(types, recurrent, strict=True) if recurs})


def cache_layers(config: PretrainedConfig) -> list[object]:
    """transformers' own empty cache of every layer, whose class says what the layer keeps; empty where it has none."""
    try:
        return list(DynamicCache(config=config).layers)
    except (KeyError, AttributeError, TypeError, ValueError):
        # Models without attention, and those of older families, have caches of their own.
        return []


def final_softcap(config: PretrainedConfig) -> float | None:
    """Softcap c in logits = c tanh(logits / c), which Gemma 2 has; None for others."""
    return getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
