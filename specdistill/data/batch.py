"""Training examples and batches: which tokens are answers, and who wrote each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdistill.data.mask_tokens import MaskTokens, lay_out
from specdistill_kernels import SoftLabels


class Provenance(IntEnum):
    """Who wrote a token."""

    PROMPT = 0
    """The prompt's author; padding carries this mark too."""
    GIVEN = 1
    """The author of the training data."""
    TARGET = 2
    """The target, as its own answer or as a correction of the draft."""
    DRAFT = 3
    """The draft."""


@dataclass(frozen=True)
class Example:
    """A prompt and one answer to it."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    provenance: tuple[int, ...]
    """`Provenance` of each answer token."""
    target_hidden: Tensor | None = field(default=None, compare=False, repr=False)
    """[answer, hidden]: the target's hidden states that predict the answer, if writing it has computed them."""
    soft_labels: SoftLabels | None = field(default=None, compare=False, repr=False)
    """[answer, K]: the target's likeliest ids and their log-probabilities, if the target itself is not loaded."""
    target_prompt_ids: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    """The prompt as the target sees it, where it sees more than the draft does (context distillation)."""
    masks: tuple[int, ...] | None = field(default=None, compare=False, repr=False)
    """Mask tokens behind the anchor of each answer token, for a parallel draft; None for any other."""

    def __post_init__(self) -> None:
        if len(self.provenance) != len(self.answer_ids):
            raise ValueError(f"{len(self.answer_ids)} answer tokens but {len(self.provenance)} provenance marks")

    @property
    def as_target_reads(self) -> Example:
        """The same answer behind the target's own prompt."""
        if self.target_prompt_ids is None:
            return self
        return replace(self, prompt_ids=self.target_prompt_ids, target_prompt_ids=None)


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right. Every tensor is [batch, length]; `masks` are beside them."""

    input_ids: Tensor
    """int64 token ids."""
    attention_mask: Tensor
    """int64, 1 on real tokens and 0 on padding."""
    response_mask: Tensor
    """bool, True on the answer tokens that the loss predicts, the first end-of-sequence token included."""
    provenance: Tensor
    """int64 `Provenance`; PROMPT on padding."""
    masks: MaskTokens | None = None
    """Mask tokens of a parallel draft; None for any other."""
    aux: Tensor | None = None
    """[batch, length, 3 x hidden]: the target's hidden states that a head reads, 0 on padding; None for any other."""

    @property
    def predicting(self) -> Tensor:
        """bool [batch, length]: positions whose hidden state predicts an answer token (`response_mask` moved left)."""
        shifted = torch.zeros_like(self.response_mask)
        shifted[:, :-1] = self.response_mask[:, 1:]
        return shifted

    @property
    def labels(self) -> Tensor:
        """int64 [tokens]: the answer tokens, in the order of `predicting`'s True positions."""
        return self.input_ids[self.response_mask]

    @property
    def num_response_tokens(self) -> int:
        """Number of answer tokens in the batch."""
        return int(self.response_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """Copy of the batch on another device."""
        masks = None if self.masks is None else self.masks.to(device)
        tensors = (self.input_ids, self.attention_mask, self.response_mask, self.provenance)
        aux = None if self.aux is None else self.aux.to(device)
        return Batch(*(tensor.to(device) for tensor in tensors), masks=masks, aux=aux)


def join_soft_labels(labels: Sequence[SoftLabels]) -> SoftLabels:
    """Joins the soft labels of several examples into one table.

    Args:
        labels: At least one, each [answer, K] with its own K.

    Returns:
        [all answer tokens, largest K]. Rows with fewer ids end with empty places.
    """
    width = max(label.token_ids.shape[1] for label in labels)
    ids, log_probs = [], []
    for label in labels:
        missing = (0, width - label.token_ids.shape[1])
        ids.append(pad(label.token_ids, missing, value=-1))
        log_probs.append(pad(label.log_probs.float(), missing, value=-torch.inf))
    return SoftLabels(fill_empty_places(torch.cat(ids)), torch.cat(log_probs))


def fill_empty_places(ids: Tensor) -> Tensor:
    """Replaces every -1 by an id that its row does not contain, since no id may occur twice in a row of soft labels.

    Empty places have probability 0, so any id does. The lowest unused ids are taken, in ascending order.

    Args:
        ids: int64 [rows, K], at least 0 or -1 for an empty place.

    Returns:
        int64 [rows, K].
    """
    width = ids.shape[1]
    empty = ids < 0
    # A row of K places has at least as many unused ids below K as empty places, so larger ids don't matter. They and
    # the empty places are marked in an extra last column, which is cut off.
    used = torch.zeros(len(ids), width + 1, dtype=torch.bool)
    used.scatter_(1, ids.where(~empty & (ids < width), width), True)
    unused_ids_first = torch.sort(used[:, :width].to(torch.int8), dim=1, stable=True).indices
    nth_empty_place = (empty.cumsum(1) - 1).clamp(min=0)
    return torch.where(empty, unused_ids_first.gather(1, nth_empty_place), ids)


ROW_TOKENS = 2048
"""Tokens up to which a row counts as one of its batch; longer rows make the batch smaller."""
MOST_TOKENS = 8 * ROW_TOKENS
"""Tokens of one pass over 8 rows, padding included."""


def split_by_tokens(lengths: Sequence[int], most_rows: int, most_tokens: int = MOST_TOKENS) -> list[range]:
    """Splits rows into batches, in order, whose memory does not grow with the length of the rows.

    Args:
        lengths: Tokens of each row.
        most_rows: Most rows per batch.
        most_tokens: Most tokens per batch, counted as rows times the longest one. A longer row is a batch of its own.

    Returns:
        Numbers of each batch's rows.
    """
    batches: list[range] = []
    start, longest = 0, 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > start and (row - start == most_rows or (row + 1 - start) * longest > most_tokens):
            batches.append(range(start, row))
            start, longest = row, length
    return [*batches, range(start, len(lengths))] if lengths else []


def collate(examples: Sequence[Example], pad_id: int = 0) -> Batch:
    """Pads examples on the right and stacks them.

    Args:
        examples: At least one.
        pad_id: Token id to write on padding. Any valid id does, since the masks hide it.
    """
    length = max(len(example.prompt_ids) + len(example.answer_ids) for example in examples)
    shape = (len(examples), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    provenance = torch.zeros(shape, dtype=torch.int64)
    for row, example in enumerate(examples):
        start, end = len(example.prompt_ids), len(example.prompt_ids) + len(example.answer_ids)
        input_ids[row, :end] = torch.tensor(example.prompt_ids + example.answer_ids)
        attention_mask[row, :end] = 1
        response_mask[row, start:end] = True
        provenance[row, start:end] = torch.tensor(example.provenance, dtype=torch.int64)
    masks = None
    if any(example.masks is not None for example in examples):
        prompts, answers = zip(*((len(one.prompt_ids), len(one.answer_ids)) for one in examples), strict=True)
        masks = lay_out(prompts, answers, [example.masks or () for example in examples])
    return Batch(input_ids, attention_mask, response_mask, provenance, masks)
