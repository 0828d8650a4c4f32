"""The module of an EAGLE-3 head (arXiv 2503.01840), as vLLM, SGLang and llama.cpp run it.

Row i of a pass stands at position i of the text. It reads the embedding of the **next** token x[i+1] and a feature of
position i, and guesses x[i+2]:

* in the first step of a round the feature is `fuse` of three of the target's hidden states there;
* in later steps it is the hidden state that the head itself gave for the row before, as it came out of `forward`.

So after the target read x[0..n-1] and chose x[n], the head reads tokens x[1..n] with the features of 0..n-1, and
its last row guesses x[n+1]. The next step reads that guess at position n with the last row's hidden state, and so on.
When the target has checked the guesses, rows of kept tokens are read again with the target's features, which
overwrite what the guesses left in the cache.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from specdistill.files.head_record import TRAINED_KEY


class Eagle3Head(PreTrainedModel):
    """A one-layer draft over [embedding of the next token; feature], with an output head of its own.

    Args:
        config: A Llama configuration of one layer with three more fields: `draft_vocab_size` (rows of the output head),
            `target_hidden_size`, and `aux_layers`. `own_embedding` is set where the head has an
            embedding; without it `use_embedding` gives it the target's.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        fields: Any = config
        self.draft_vocab_size = int(fields.draft_vocab_size)
        hidden = int(fields.hidden_size)
        self.fc = nn.Linear(3 * int(fields.target_hidden_size), hidden, bias=False)
        self.layers = nn.ModuleList([HeadLayer(config)])
        self.norm = LlamaRMSNorm(hidden, eps=fields.rms_norm_eps)
        self.lm_head = nn.Linear(hidden, self.draft_vocab_size, bias=False)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.own_embedding = bool(getattr(fields, "own_embedding", False))
        if self.own_embedding:
            self.embed_tokens = nn.Embedding(int(fields.vocab_size), hidden)
        self._shared: list[Tensor] = []
        self.register_buffer("draft_ids", torch.arange(self.draft_vocab_size), persistent=False)
        self.draft_ids: Tensor
        """int64 [draft_vocab_size], ascending: id of the target's vocabulary for each row of the output head."""

    @property
    def layer(self) -> HeadLayer:
        """The only decoder layer."""
        return cast(HeadLayer, self.layers[0])

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The target's three layers that are read: k is the hidden state after k layers, before any final norm."""
        return tuple(self.config.aux_layers)

    def mark_trained_for(self, tokens: int) -> None:
        """Notes the draft tokens per round that it is trained for, which is saved with it."""
        setattr(self.config, TRAINED_KEY, tokens)

    def use_embedding(self, weight: Tensor) -> None:
        """Gives the head the target's embedding [vocab, hidden], which is neither copied, trained nor saved.

        Does nothing for a head with an embedding of its own.
        """
        if not self.own_embedding:
            self._shared[:] = [weight.detach()]

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings of token ids, [..., hidden], in the head's dtype."""
        if self.own_embedding:
            return self.embed_tokens(input_ids)
        assert self._shared, "use_embedding comes first"
        return nn.functional.embedding(input_ids, self._shared[0]).to(self.dtype)

    def fuse(self, aux: Tensor) -> Tensor:
        """Features [..., hidden] of the target's states [..., 3 x target_hidden_size], in `aux_layers`' order."""
        return self.fc(aux.to(self.dtype))

    def forward(
        self,
        input_ids: Tensor,
        features: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
    ) -> Tensor:
        """Runs the layer.

        Args:
            input_ids: int64 [batch, rows]: the NEXT token at each row's position.
            features: [batch, rows, hidden]: `fuse` of the target's states, or this method's result for the row before.
            position_ids: int64 [batch, rows]; counted from what the cache holds where left out.
            attention_mask: Additive [batch, 1, rows, keys], over what the cache holds and the new rows; left out, rows
                see themselves and all before them. With rows in the cache and several new ones it is needed.
            past_key_values: Any cache of transformers' protocol with one layer, such as `RaggedCache`.

        Returns:
            [batch, rows, hidden]: the next step's features. `logits` turns them into guesses.
        """
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + input_ids.shape[1], device=input_ids.device)[None]
        query, key, value = self.project(self.embed(input_ids), features, position_ids)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, 0)
        context = nn.functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attention_mask,
            is_causal=attention_mask is None and query.shape[2] > 1,
            enable_gqa=True,
        )
        return self.layer.finish(features, context.transpose(1, 2))

    def project(self, embeddings: Tensor, features: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries [batch, heads, rows, head_dim], and keys and values [batch, kv_heads, rows, head_dim]."""
        query, key, value = self.layer.project(embeddings, features)
        cos, sin = self.rotary_emb(features, position_ids)
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        return query, key, value

    def keep_ids(self, kept: Tensor) -> None:
        """Drops all other rows of the output head.

        Args:
            kept: bool [draft_vocab_size], some of them true.
        """
        if bool(kept.all()):
            return
        rows, self.draft_ids = self.lm_head.weight[kept], self.draft_ids[kept]
        self.lm_head = nn.Linear(rows.shape[1], len(rows), bias=False, device=rows.device, dtype=rows.dtype)
        with torch.no_grad():
            self.lm_head.weight.copy_(rows)
        config: Any = self.config
        self.draft_vocab_size = config.draft_vocab_size = len(self.draft_ids)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., draft_vocab_size] of `forward`'s result; column c stands for the id `draft_ids[c]`."""
        return self.lm_head(self.norm(hidden))

    def get_output_embeddings(self) -> nn.Linear:
        """The trimmed output head; its input is `norm` of a hidden state."""
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        """The head's own embedding.

        Raises:
            NotImplementedError: It uses the target's.
        """
        if not self.own_embedding:
            raise NotImplementedError("this head reads the target's embedding")
        return self.embed_tokens


class HeadLayer(nn.Module):
    """Decoder layer whose attention reads the normed embedding and the normed feature side by side."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        fields: Any = config
        self.self_attn = HeadAttention(config)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = LlamaRMSNorm(fields.hidden_size, eps=fields.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(fields.hidden_size, eps=fields.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(fields.hidden_size, eps=fields.rms_norm_eps)

    def project(self, embeddings: Tensor, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [batch, heads, rows, head_dim], not rotated yet."""
        inputs = torch.cat((self.input_layernorm(embeddings), self.hidden_norm(features)), -1)
        attention = self.self_attn
        query, key, value = (
            projection(inputs).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        return query, key, value

    def finish(self, features: Tensor, context: Tensor) -> Tensor:
        """The layer's result from what attention gathered.

        Args:
            features: [batch, rows, hidden], the residual.
            context: [batch, rows, heads, head_dim].
        """
        hidden = features + self.self_attn.o_proj(context.flatten(-2))
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class HeadAttention(nn.Module):
    """Projections of the layer's attention, from twice the hidden size."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        fields: Any = config
        hidden, self.head_dim = int(fields.hidden_size), int(fields.head_dim)
        own, shared = fields.num_attention_heads * self.head_dim, fields.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(2 * hidden, own, bias=False)
        self.k_proj = nn.Linear(2 * hidden, shared, bias=False)
        self.v_proj = nn.Linear(2 * hidden, shared, bias=False)
        self.o_proj = nn.Linear(own, hidden, bias=False)
