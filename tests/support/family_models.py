"""A tiny random model of every type of causal model that people serve, built from transformers' own configurations."""

from __future__ import annotations

import torch
from tiny_models import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from specdistill.models import LanguageModel

VOCAB = 65
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "ssm_state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
    "mamba_d_ssm": 64,
    "mamba_dt_rank": 4,
    "intermediate_size_mlp": 48,
    "ffn_dim": 48,
    "word_embed_proj_dim": 32,
}
"""Settings of every configuration that knows them."""

_MIXED = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_LATENT = {"head_dim": 4, "num_key_value_heads": 4}
_INDEXED = {"index_head_dim": 8, "index_n_heads": 16, "index_topk": 6}
"""So many heads that scores are hardly ever all 0, which would be a tie."""
OWN: dict[str, dict] = {
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "granitemoehybrid": {"layer_types": _MIXED},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "granite": {"logits_scaling": 4.0},
    "falcon_h1": {"lm_head_multiplier": 0.5},
    "gpt_oss": {"tie_word_embeddings": False},
    "axk1": _LATENT,
    "axk2": {**_LATENT, **_INDEXED},
    "hy_v4": {"index_head_dim": 8, "index_n_heads": 16, "index_topk": 6},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "deepseek_v32": {**_LATENT, **_INDEXED},
    "glm_moe_dsa": {**_LATENT, **_INDEXED},
    "glm4_moe_lite": _LATENT,
    "minicpm3": _LATENT,
    "youtu": _LATENT,
    "cwm": {"bos_token_id": 1},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8},
    "modernbert-decoder": {"bos_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 8},
    "bailing_hybrid": {"layer_types": _MIXED},
    "minimax": {"layer_types": _MIXED},
    "qwen3_next": {"layer_types": _MIXED},
    "qwen3_5_text": {
        "layer_types": _MIXED,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "mrope_interleaved": True,
            "mrope_section": [2, 1, 1],
        },
    },
    "qwen3_5_moe_text": {"layer_types": _MIXED},
    "falcon_mamba": {"expand": 2, "intermediate_size": 64},
    "mamba": {"expand": 2, "intermediate_size": 64},
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"] * 2, "no_rope_layers": [1, 0, 1, 0]},
    "gemma4_text": {"hidden_size_per_layer_input": 0},
}
"""Settings that a type needs besides."""


def own_settings(kind: str) -> dict:
    """Settings that a type needs besides the shared ones."""
    return OWN.get(kind, {})


def family_config(kind: str, **extra) -> PretrainedConfig:
    """A small configuration of a type."""
    known = set(CONFIG_MAPPING[kind]().to_dict()) | set(getattr(CONFIG_MAPPING[kind], "attribute_map", {}))
    settings = {name: value for name, value in SMALL.items() if name in known}
    return AutoConfig.for_model(kind, **{**settings, **own_settings(kind), **extra})


def family_model(kind: str, seed: int = 0, scale: float = 4.0, **extra) -> LanguageModel:
    """A random model of a type, whose logits are spread enough that its argmaxes are no ties."""
    torch.manual_seed(seed)
    config = family_config(kind, **extra)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    assert size < 2_000_000, f"{kind} has {size} parameters"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
            elif parameter.ndim == 1 and not parameter.any():
                parameter.normal_(0, 0.3)
    return LanguageModel(model, make_tokenizer(VOCAB - 5), f"tiny-{kind}", None, VOCAB)


DECODE = (
    "afmoe",
    "apertus",
    "arcee",
    "aria_text",
    "axk1",
    "axk2",
    "beam",
    "biogpt",
    "bitnet",
    "codegen",
    "cohere",
    "cohere2",
    "cohere2_moe",
    "cwm",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "diffllama",
    "doge",
    "dots1",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "exaone_moe",
    "falcon",
    "flex_olmo",
    "flint",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "gemma4_unified_text",
    "glm",
    "glm4",
    "glm4_moe",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granite_swa",
    "granitemoe",
    "granitemoe_swa",
    "granitemoeshared",
    "helium",
    "hunyuan_v1_dense",
    "hunyuan_v1_moe",
    "hy_v3",
    "hy_v4",
    "hyperclovax",
    "jais2",
    "jetmoe",
    "kolibri1",
    "laguna",
    "llama",
    "llama4_text",
    "mellum",
    "mimo_v2_flash",
    "minicpm3",
    "minimax_m2",
    "minimax_m3_vl_text",
    "ministral",
    "ministral3",
    "mistral",
    "mixtral",
    "mpt",
    "nanochat",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "solar_open",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "youtu",
)
"""Types that decode speculatively in this process."""
STATE = "keep a state that only grows"
PREDICT = {
    "bamba": STATE,
    "falcon_h1": STATE,
    "falcon_mamba": "don't take this cache",
    "granitemoehybrid": STATE,
    "jamba": STATE,
    "lfm2": STATE,
    "lfm2_moe": STATE,
    "lfm3": STATE,
    "mamba": "don't take this cache",
    "nemotron_h": STATE,
    "olmo_hybrid": STATE,
    "qwen3_5_moe_text": STATE,
    "qwen3_5_text": STATE,
    "qwen3_next": STATE,
    "bloom": "don't take this cache",
    "deepseek_v4": "don't take this cache",
    "gpt_neo": "differs by",
    "openai-gpt": "don't take this cache",
}
"""Types whose acceptance is predicted and that write answers, but can't drop tokens here -> the reason."""
CUT_CHANGES = ("beam", "diffllama", "minicpm3")
"""Types whose layers compute with their number, or with the number of layers: a cut begins as another model."""
NO_CUT = ("flint", "jamba")
"""Types whose layers can't be cut out; the message says so."""
