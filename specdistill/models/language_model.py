"""A causal language model, with the facts that decoding, distillation and evaluation need about it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdistill.files.adapters import Adapter
from specdistill.models import families
from specdistill.models.stop_ids import eos_ids

LONG_TEXT = 2048
"""Tokens above which memory for every pair of tokens is avoided; shorter texts keep the passes that they always had."""


@dataclass
class LanguageModel:
    """A loaded model. It gives hidden states and logits separately, and logits only for ids of the tokenizer."""

    model: PreTrainedModel
    """The transformers model, in eval mode except during training."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """The name that the user gave, for reports and errors."""
    directory: Path | None
    """Directory of its files; for a .gguf that of the converted checkpoint.

    None if the files are in the hub's cache, or if the model was never saved.
    """
    vocab_size: int
    """Number of ids that the tokenizer can produce. Further rows of the head are padding and never sampled."""
    kept_ids: Tensor | None = None
    """int64 [N], ascending: ids of a trimmed output head; None for the whole vocabulary."""
    stored_dtype: torch.dtype | None = None
    """dtype of the files it was loaded from, and in which it is saved; None saves the weights' own dtype."""
    target_stop_ids: frozenset[int] = frozenset()
    """Stop ids that a draft has from its target, where it answers in the target's place."""
    adapter: Adapter | None = None
    """The adapter that was merged into the weights; None for a whole model."""
    parameters: int | None = None
    """Number of parameters where quantised weights hold several in one number; None counts the weights."""
    packed_head: torch.nn.Module | None = field(default=None, repr=False)
    """Packed copy of the output head that is used in its place; see `packed.pack`."""
    _head: Tensor | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """The name; for an adapter with its base and the content of both, so that a changed one is another model."""
        return self.name if self.adapter is None else self.adapter.label

    @property
    def config(self):
        """Configuration of the transformers model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.device

    @property
    def softcap(self) -> float | None:
        """Softcap of the logits; see `families.final_softcap`."""
        return families.final_softcap(self.config)

    @property
    def max_context(self) -> int:
        """Largest number of positions that the model supports."""
        return families.max_context(self.config)

    @property
    def num_parameters(self) -> int:
        """Number of parameters; a tied embedding and head count once."""
        return self.parameters or sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def head_weight(self) -> Tensor:
        """Output head, [padded vocab, hidden]; the embedding if the model ties the two."""
        head = self.model.get_output_embeddings()
        assert head is not None, "causal models have an output head"
        return cast(Tensor, head.weight)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends an answer. The generation config may list several; config and tokenizer know one.

        Ids beyond the head are never written.
        """
        generation_config = getattr(self.model, "generation_config", None)
        sources = (generation_config, self.config, self.tokenizer)
        named = self.target_stop_ids.union(*(eos_ids(source) for source in sources))
        return frozenset(token_id for token_id in named if token_id < self.vocab_size)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm, [batch, length, hidden], without a KV cache.

        Args:
            input_ids: int64 [batch, length], padded on the right.
            attention_mask: [batch, length]; 0 on padding. It may be left out, since causal attention already hides
                padding on the right from real tokens. It is left out for long texts, where transformers would turn it
                into 5 bytes for every pair of tokens.
        """
        if input_ids.shape[1] > LONG_TEXT:
            attention_mask = None
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    @property
    def base_model(self):
        """The transformers model without its output head."""
        return self.model.base_model

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that this model can propose: [..., N] with a trimmed head, else [..., vocab_size]."""
        logits = hidden @ self.inference_head().T if self.packed_head is None else self.packed_head(hidden)
        # No supported family has a bias in its head.
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def to_vocabulary(self, own_logits: Tensor) -> Tensor:
        """Spreads `own_logits` over the whole vocabulary, [..., vocab_size]; -inf for ids that the head lacks."""
        if self.kept_ids is None:
            return own_logits
        full = own_logits.new_full((*own_logits.shape[:-1], self.vocab_size), -torch.inf)
        return full.index_copy_(-1, self.kept_ids, own_logits)

    def to_token_ids(self, own_indices: Tensor) -> Tensor:
        """Maps columns of `own_logits` to token ids."""
        return own_indices if self.kept_ids is None else self.kept_ids[own_indices]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the tokenizer's ids, [..., vocab_size]; -inf for ids that a trimmed head lacks."""
        return self.to_vocabulary(self.own_logits(hidden))

    def inference_head(self) -> Tensor:
        """Rows of the output head for the ids that the model can propose, [N or vocab_size, hidden]."""
        weight = self.head_weight
        if self.kept_ids is None:
            return weight[: self.vocab_size]
        if torch.is_grad_enabled():
            return weight[self.kept_ids]
        if self._head is None:
            # Copied once, since gathering the rows at every step would cost as much as the trimmed head saves.
            self._head = weight[self.kept_ids].clone()
        return self._head

    def weights_changed(self) -> None:
        """Drops cached copies of weights; call it after an optimiser step."""
        self._head = None

    @contextlib.contextmanager
    def generating(self):
        """Puts the model into eval mode without gradients inside the block, and restores its mode afterwards."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield self
        finally:
            self.model.train(was_training)
