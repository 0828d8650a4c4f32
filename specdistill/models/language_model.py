"""A causal language model with what decoding, distillation and evaluation need to know about it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdistill.models import families


@dataclass
class LanguageModel:
    """A loaded model: hidden states and logits apart, and logits over the tokenizer's real ids only."""

    model: PreTrainedModel
    """The transformers model, in eval mode unless it is being trained."""
    tokenizer: PreTrainedTokenizerBase
    name: str
    """As the user wrote it; for reports and errors."""
    directory: Path | None
    """Where its files lie (for a .gguf: the converted checkpoint); None for a model that was never saved."""
    vocab_size: int
    """Ids that the tokenizer can produce; rows of the head beyond it are padding and never sampled."""
    kept_ids: Tensor | None = None
    """int64 [N] ascending: the ids of a trimmed output head; None for the whole vocabulary."""
    stored_dtype: torch.dtype | None = None
    """Of the files it came from, in which it is saved again; None keeps the weights' own."""
    packed_head: torch.nn.Module | None = field(default=None, repr=False)
    """Multiplies hidden states by the output head in its place; see `packed.pack`."""
    _head: Tensor | None = field(default=None, repr=False)

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def softcap(self) -> float | None:
        return families.final_softcap(self.config)

    @property
    def max_context(self) -> int:
        return families.max_context(self.config)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def head_weight(self) -> Tensor:
        """The output head, [padded vocab, hidden]; the tied embedding where the model ties them."""
        head = self.model.get_output_embeddings()
        assert head is not None, "causal models have an output head"
        return cast(Tensor, head.weight)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends a generation: the generation config may list several, the tokenizer knows one."""
        ids: set[int] = set()
        generation_config = getattr(self.model, "generation_config", None)
        for source in (generation_config, self.config, self.tokenizer):
            value = getattr(source, "eos_token_id", None)
            ids.update([value] if isinstance(value, int) else value or [])
        return frozenset(ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """An answer's text, without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def hidden_states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states after the final norm, [batch, length, hidden], without a KV cache.

        Args:
            input_ids: int64 [batch, length], padded on the right.
            attention_mask: [batch, length]; 0 on padding. Causal masking already hides right padding from real tokens,
                so it may be left out.
        """
        return self.base_model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state

    @property
    def base_model(self):
        """The network below the output head."""
        return self.model.base_model

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits over the ids this model can propose, [..., N] for a trimmed head and [..., vocab_size] else."""
        logits = hidden @ self.inference_head().T if self.packed_head is None else self.packed_head(hidden)
        # GPT-2, Llama, Qwen, Gemma and Mistral have no bias in the head.
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def to_vocabulary(self, own_logits: Tensor) -> Tensor:
        """Spreads a trimmed head's logits over the whole vocabulary: -inf where the head has no row."""
        if self.kept_ids is None:
            return own_logits
        full = own_logits.new_full((*own_logits.shape[:-1], self.vocab_size), -torch.inf)
        return full.index_copy_(-1, self.kept_ids, own_logits)

    def to_token_ids(self, own_indices: Tensor) -> Tensor:
        """Maps columns of `own_logits` to token ids."""
        return own_indices if self.kept_ids is None else self.kept_ids[own_indices]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits over the real vocabulary, [..., vocab_size]; -inf for ids outside a trimmed head."""
        return self.to_vocabulary(self.own_logits(hidden))

    def inference_head(self) -> Tensor:
        """Rows of the head for the ids that the model can propose."""
        weight = self.head_weight
        if self.kept_ids is None:
            return weight[: self.vocab_size]
        if torch.is_grad_enabled():
            return weight[self.kept_ids]
        if self._head is None:
            # A contiguous copy: gathering rows on every step would cost as much as the multiplication it saves.
            self._head = weight[self.kept_ids].clone()
        return self._head

    def weights_changed(self) -> None:
        """Forgets what was derived from the weights; call after an optimiser step."""
        self._head = None

    @contextlib.contextmanager
    def generating(self):
        """eval mode and no gradients while the block runs; back to training mode after, if that is where it was."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield self
        finally:
            self.model.train(was_training)


def end_of(model: LanguageModel) -> int:
    """The id that ends the model's answers: its tokenizer's own, or where that is none, the least that ends one."""
    own = model.tokenizer.eos_token_id
    return own if isinstance(own, int) else min(model.eos_token_ids)
