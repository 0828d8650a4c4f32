"""Token sequences for training: which positions are answers, and which model wrote each of them."""

from __future__ import annotations

from collections.abc import Sequence as Many
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
class Sequence:
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


def join_soft_labels(parts: Many[SoftLabels]) -> SoftLabels:
    """The rows of several sequences under each other; where one has fewer ids, more of probability 0 are added."""
    width = max(part.token_ids.shape[1] for part in parts)
    ids, log_probs = [], []
    for part in parts:
        missing = width - part.token_ids.shape[1]
        for row_ids, row in zip(part.token_ids, part.log_probs, strict=True):
            taken = set(row_ids.tolist())
            # No id may come twice, so those that are added are the least that are free.
            free = [number for number in range(width) if number not in taken][:missing]
            ids.append(torch.cat([row_ids, torch.tensor(free, dtype=torch.int64)]))
            log_probs.append(torch.cat([row, torch.full((missing,), -torch.inf, dtype=row.dtype)]))
    return SoftLabels(torch.stack(ids), torch.stack(log_probs))


def collate(sequences: Many[Sequence], pad_id: int = 0) -> Batch:
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
