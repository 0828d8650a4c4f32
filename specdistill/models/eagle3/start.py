"""A head as training begins: a layer from the target's last one, rows of its output head, the top feature alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PretrainedConfig

from specdistill.errors import ModelError
from specdistill.models import families
from specdistill.models.eagle3.head import Eagle3Head
from specdistill.models.language_model import LanguageModel

TARGET_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Types of targets whose last layer an EAGLE-3 layer can begin as, and which engines give its hidden states."""


def default_aux_layers(num_layers: int) -> tuple[int, int, int]:
    """The three layers that every engine reads where nothing names others: 2, L / 2 and L - 3.

    Below 7 layers those are not three different ones; then the last three, which only specdistill and vLLM read.
    """
    if num_layers < 7:
        return num_layers - 2, num_layers - 1, num_layers
    return 2, num_layers // 2, num_layers - 3


def check_target(config: PretrainedConfig, where: str) -> None:
    """Refuses a target that no head can be made for. Needs no weights.

    Args:
        config: The target's.
        where: Names it in messages, such as `--target NAME`.

    Raises:
        ModelError: Its type, activation or number of layers does not fit.
    """
    kind = config.model_type
    if kind not in TARGET_TYPES:
        raise ModelError(
            f"{where} is of type {kind!r}, for which no EAGLE-3 head can be made here; targets may be "
            f"{', '.join(TARGET_TYPES)}; 'specdistill init-draft --layers N' cuts an independent draft"
        )
    if getattr(config, "hidden_act", "silu") != "silu":
        raise ModelError(f"{where} has the activation {config.hidden_act!r}; engines run heads with silu only")
    if families.num_layers(config) < 2:
        raise ModelError(f"{where} has 1 layer; a head reads three hidden states, so it needs 2 layers or more")


def head_config(target: PretrainedConfig, draft_vocab_size: int, own_embedding: bool = False) -> LlamaConfig:
    """Configuration of a head for a target: the target's shapes, one layer."""
    fields: Any = target
    config: Any = LlamaConfig(
        vocab_size=fields.vocab_size,
        hidden_size=fields.hidden_size,
        intermediate_size=fields.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=fields.num_attention_heads,
        num_key_value_heads=fields.num_key_value_heads,
        head_dim=getattr(fields, "head_dim", None) or fields.hidden_size // fields.num_attention_heads,
        max_position_embeddings=fields.max_position_embeddings,
        initializer_range=getattr(fields, "initializer_range", 0.02),
        rms_norm_eps=fields.rms_norm_eps,
        rope_parameters=copy.deepcopy(fields.rope_parameters),
        bos_token_id=fields.bos_token_id,
        eos_token_id=fields.eos_token_id,
        pad_token_id=getattr(fields, "pad_token_id", None),
        tie_word_embeddings=False,
    )
    config.draft_vocab_size, config.target_hidden_size = draft_vocab_size, fields.hidden_size
    config.aux_layers = default_aux_layers(families.num_layers(target))
    config.own_embedding = own_embedding
    return config


@torch.no_grad()
def head_from_target(
    target: LanguageModel, draft_ids: Sequence[int] | Tensor, own_embedding: bool = False
) -> Eagle3Head:
    """A head that begins as a copy of parts of its target.

    * `fc` passes the highest of the three states on and leaves out the others.
    * The layer is the target's last one where it reads the feature; where it reads the embedding, weights are zero.
    * `norm` and the rows of the output head are the target's.

    Args:
        target: Not changed; its embedding is shared unless the head gets a copy of its own.
        draft_ids: Ids that the head can propose, at least one.
        own_embedding: Whether the head gets and trains an embedding of its own.

    Raises:
        ModelError: The target's type does not fit; see `check_target`.
    """
    check_target(target.config, f"--target {target.name}")
    ids = torch.as_tensor(draft_ids).unique().to(target.device)
    head = Eagle3Head(head_config(target.config, len(ids), own_embedding))
    # transformers' own annotation of `to` does not take a dtype.
    nn.Module.to(head, target.device, torch.float32)
    head.draft_ids = ids
    hidden = head.config.hidden_size
    head.fc.weight.zero_()
    head.fc.weight[:, -hidden:] = torch.eye(hidden)
    last: Any = families.decoder_layers(target.base_model, target.config)[-1]
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(head.layer.self_attn, name).weight
        weight.zero_()
        weight[:, hidden:] = _plain(getattr(last.self_attn, name))
    head.layer.self_attn.o_proj.weight.copy_(_plain(last.self_attn.o_proj))
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(head.layer.mlp, name).weight.copy_(_plain(getattr(last.mlp, name)))
    head.layer.hidden_norm.weight.copy_(last.input_layernorm.weight)
    head.layer.post_attention_layernorm.weight.copy_(last.post_attention_layernorm.weight)
    norm: Any = target.base_model.norm
    head.norm.weight.copy_(norm.weight)
    head.lm_head.weight.copy_(target.head_weight[ids])
    embedding: Any = target.model.get_input_embeddings()
    if own_embedding:
        head.embed_tokens.weight.copy_(embedding.weight)
    head.use_embedding(embedding.weight)
    return head.eval()


def _plain(module: nn.Module) -> Tensor:
    weight: Any = module.weight
    return weight
