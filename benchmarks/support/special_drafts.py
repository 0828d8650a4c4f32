"""Drafts with another output head: the whole vocabulary, fewer ids, or one that is never right."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from specdistill.models import LanguageModel


def with_head_of(draft: LanguageModel, kept_ids: torch.Tensor | None) -> LanguageModel:
    """The same weights with an output head that proposes `kept_ids` only; None for the whole vocabulary."""
    changed = dataclasses.replace(draft, kept_ids=kept_ids)
    # Drops the rows that were gathered for the former head.
    changed.weights_changed()
    return changed


def with_first_ids(draft: LanguageModel, size: int) -> LanguageModel:
    """The same weights with a head over the first `size` ids."""
    return with_head_of(draft, None if size >= draft.vocab_size else torch.arange(size))


def never_right(draft: LanguageModel) -> LanguageModel:
    """The same draft with the rows of its head in reverse order: each step costs as much, and no proposal is right."""
    rows = draft.inference_head().detach().flip(0).contiguous()
    head = nn.Linear(rows.shape[1], rows.shape[0], bias=False)
    head.weight = nn.Parameter(rows, requires_grad=False)
    return dataclasses.replace(draft, packed_head=head)
