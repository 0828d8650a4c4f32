"""Random mixtures of experts of several families, small enough for tests."""

from __future__ import annotations

import torch
from tiny_models import WORDS, make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from specdistill.models import LanguageModel

MIXTURES = (
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "phimoe", "minimax_m2"),
    *("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "hunyuan_v1_moe", "flex_olmo", "dots1"),
)
"""Families whose experts transformers runs one by one, for the tokens that are sent to them."""
EXPERTS, PER_TOKEN, DENSE_LAYERS = 8, 2, 1
# Each family reads the names that it knows.
_SHARED = {
    "vocab_size": WORDS + 5,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "shared_expert_intermediate_size": 16,
    "first_k_dense_replace": DENSE_LAYERS,
}
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "moe_k")
_LATENT = {"q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}


def make_mixture(
    family: str, *, seed: int = 0, experts: int = EXPERTS, per_token: int = PER_TOKEN, **settings
) -> LanguageModel:
    """A random mixture whose routers prefer other experts for other tokens."""
    torch.manual_seed(seed)
    names = _SHARED | dict.fromkeys(_EXPERTS, experts) | dict.fromkeys(_PER_TOKEN, per_token)
    names |= _LATENT if family.startswith("deepseek") else {"num_key_value_heads": 2, "head_dim": 8}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(names | settings))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and ("embed" in name or name.endswith(("gate.weight", "router.weight"))):
                parameter.normal_()
    tokenizer = make_tokenizer()
    return LanguageModel(model, tokenizer, f"tiny-{family}", None, max(tokenizer.get_vocab().values()) + 1)
