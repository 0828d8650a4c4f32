"""Token sequences for training: which positions are answers, and which model wrote each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
from torch import Tensor

from specdistill_kernels import SoftLabels


class Provenance(IntEnum):
    """Who wrote a token."""

    PROMPT = 0
    GIVEN = 1
    TARGET = 2
    DRAFT = 3


@dataclass(frozen=True)
class Example:
    """A prompt and one answer to it."""

    prompt_id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    provenance: tuple[int, ...]
    """A `Provenance` for each answer token."""
    target_hidden: Tensor | None = field(default=None, compare=False, repr=False)
    """[answer, hidden]: the target's hidden states that predict the answer, where writing it has computed them."""

    soft_labels: SoftLabels | None = field(default=None, compare=False, repr=False)
    """[answer, K]: the target's likeliest ids with their log-probabilities, where that is all that is known of it."""

    def __post_init__(self) -> None:
        if len(self.provenance) != len(self.answer_ids):
            raise ValueError(f"{len(self.answer_ids)} answer tokens but {len(self.provenance)} provenance marks")


@dataclass(frozen=True)
class Batch:
    """Sequences padded on the right, [batch, length] each."""

    input_ids: Tensor
    """int64."""
    attention_mask: Tensor
    """int64, 1 on real tokens."""
    response_mask: Tensor
    """bool, True on answer tokens: those that the loss predicts. The first end-of-sequence token is one of them."""
    provenance: Tensor
    """int64 `Provenance`; PROMPT on padding too."""

    @property
    def predicting(self) -> Tensor:
        """bool [batch, length]: positions whose hidden state predicts an answer token (the mask shifted left)."""
        shifted = torch.zeros_like(self.response_mask)
        shifted[:, :-1] = self.response_mask[:, 1:]
        return shifted

    @property
    def labels(self) -> Tensor:
        """int64 [tokens]: the answer tokens, in the order of `predicting`'s True positions."""
        return self.input_ids[self.response_mask]

    @property
    def num_response_tokens(self) -> int:
        return int(self.response_mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def join_soft_labels(parts: Sequence[SoftLabels]) -> SoftLabels:
    """The rows of several sequences under each other; where one has fewer ids, the rest of its places is empty."""
    rows = sum(len(part.token_ids) for part in parts)
    shape = (rows, max(part.token_ids.shape[1] for part in parts))
    ids, log_probs = torch.full(shape, -1, dtype=torch.int64), torch.full(shape, -torch.inf)
    start = 0
    for part in parts:
        block = slice(start, start + len(part.token_ids)), slice(part.token_ids.shape[1])
        ids[block], log_probs[block] = part.token_ids, part.log_probs.float()
        start += len(part.token_ids)
    return SoftLabels(with_free_ids(ids), log_probs)


def with_free_ids(ids: Tensor) -> Tensor:
    """Writes ids that the row does not hold yet where it holds -1: no id may come twice in a row of soft labels.

    Args:
        ids: int64 [rows, K].
    """
    width = ids.shape[1]
    taken = torch.zeros(len(ids), width + 2, dtype=torch.bool)
    # Only ids below K can be needed; larger ones and -1 are marked where nobody looks.
    taken.scatter_(1, ids.clamp(max=width).where(ids >= 0, width + 1), True)
    free = torch.sort(taken[:, :width].to(torch.int8), dim=1, stable=True).indices
    missing = ids < 0
    turn = (missing.cumsum(1) - 1).clamp(min=0)
    return torch.where(missing, free.gather(1, turn), ids)


def collate(sequences: Sequence[Example], pad_id: int = 0) -> Batch:
    """Pads sequences on the right.

    Args:
        sequences: At least one.
        pad_id: Written on padding; any valid id, the masks hide it.
    """
    length = max(len(sequence.prompt_ids) + len(sequence.answer_ids) for sequence in sequences)
    shape = (len(sequences), length)
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    provenance = torch.zeros(shape, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        start, end = len(sequence.prompt_ids), len(sequence.prompt_ids) + len(sequence.answer_ids)
        input_ids[row, :end] = torch.tensor(sequence.prompt_ids + sequence.answer_ids)
        attention_mask[row, :end] = 1
        response_mask[row, start:end] = True
        provenance[row, start:end] = torch.tensor(sequence.provenance, dtype=torch.int64)
    return Batch(input_ids, attention_mask, response_mask, provenance)
