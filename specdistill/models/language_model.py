"""A causal language model, with the facts that decoding, distillation and evaluation need about it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from specdistill.files.adapters import Adapter
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import families, output_head
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
    """Number of parameters where weights are packed, or quantised ones hold several in one number; None counts them."""
    packed_head: torch.nn.Module | None = field(default=None, repr=False)
    """Packed copy of the output head that is used in its place; see `packed.pack`."""
    one_by_one: bool = False
    """Whether a parallel draft is used as an ordinary one, which takes a pass for each token."""
    learns_to_guess: bool = False
    """Whether a run has just made a parallel draft of it: where it was loaded, it guessed one token per pass."""
    proof: object | None = field(default=None, repr=False)
    """Result of `decoding.proof` for this model; None before it was made."""
    step_runner: Any = field(default=None, repr=False)
    """Captures the steps of decoding (`decoding.step_runner`); None runs them eagerly."""
    packs: bool = False
    """Whether texts of different lengths share rows in a pass (`decoding.packed_pass`), which has been proven."""
    _head: Tensor | None = field(default=None, repr=False)
    _logit_scale: float | None = field(default=None, repr=False)

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
    def parallel(self) -> ParallelDrafting | None:
        """How it drafts several tokens in one pass, by its configuration; None for a model that does not."""
        return None if self.one_by_one else ParallelDrafting.of_config(self.config, self.name)

    @property
    def guesses_by_start(self) -> bool:
        """Whether its guess of a token depends on where the round started, which is so of parallel drafts and heads."""
        return self.parallel is not None

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
    def head_bias(self) -> Tensor | None:
        """Bias of the output head, [padded vocab]; None for most families."""
        bias = getattr(self.model.get_output_embeddings(), "bias", None)
        return bias if isinstance(bias, Tensor) else None

    @property
    def logit_scale(self) -> float:
        """Factor on the head's product; found once, by a pass over a few tokens (see `output_head`).

        Raises:
            ModelError: The model gets its logits in another way.
        """
        if self._logit_scale is None:
            self._logit_scale = 1.0 if self.device.type == "meta" else self._find_logit_scale()
        return self._logit_scale

    def with_logit_scale(self) -> LanguageModel:
        """The model itself, whose `logit_scale` is then known."""
        _ = self.logit_scale
        return self

    def _find_logit_scale(self) -> float:
        with self.generating():
            ids = torch.tensor([output_head.sample_ids(self.vocab_size, 8)], device=self.device)
            return output_head.logit_scale(self.model, self.hidden_states(ids), ids, self.name)

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
        base = self.model.base_model
        if base is not self.model:
            return base
        # Some classes (Llama 4) name an attribute that they don't have, and would give the whole model.
        return next((child for child in base.children() if isinstance(child, PreTrainedModel)), base)

    @property
    def takes_positions(self) -> bool:
        """Whether a pass can be told the positions of its tokens."""
        parameters = inspect.signature(self.base_model.forward).parameters
        return "position_ids" in parameters or "kwargs" in parameters

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of the ids that this model can propose: [..., N] with a trimmed head, else [..., vocab_size]."""
        if self.packed_head is not None:
            logits = self.packed_head(hidden)
        else:
            logits = nn.functional.linear(hidden, self.inference_head(), self.inference_bias())
        if self.logit_scale != 1:
            logits = logits * self.logit_scale
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

    def inference_bias(self) -> Tensor | None:
        """Bias of the rows of `inference_head`; None for heads without one, which most are."""
        bias = self.head_bias
        if bias is None:
            return None
        return bias[: self.vocab_size] if self.kept_ids is None else bias[self.kept_ids]

    def loss_inputs(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and a head whose plain product, softcapped, is the model's logits.

        The losses know neither scale nor bias: the scale goes into the hidden states, the bias becomes one more column.

        Args:
            hidden: [..., hidden].

        Returns:
            [..., hidden] and [padded vocab, hidden], or both with one column more.
        """
        weight, bias = self.head_weight, self.head_bias
        if self.logit_scale != 1:
            hidden = hidden * self.logit_scale
        if bias is None:
            return hidden, weight
        ones = hidden.new_full((*hidden.shape[:-1], 1), self.logit_scale)
        return torch.cat((hidden, ones), -1), torch.cat((weight, bias[:, None].to(weight.dtype)), 1)

    def weights_changed(self) -> None:
        """Brings cached copies of weights up to date; call it after an optimiser step."""
        if self.step_runner is None or self.kept_ids is None:
            self._head = None
        elif self._head is not None:
            # Graphs hold the copy's address, so it changes in place, as other weights do.
            with torch.inference_mode():
                self._head.copy_(self.head_weight[self.kept_ids])

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
