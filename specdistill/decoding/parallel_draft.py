"""The draft that guesses several tokens in one pass behind mask tokens, as `files.parallel_drafting` describes it.

One pass per round reads the tokens that were kept since the last one, then as many mask tokens as tokens are wanted
beyond the first. Each proposal is drawn from its own row, so it does not depend on the other proposals. The cache
keeps the text and no mask token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill.decoding.cached_model import EXTENT, CachedModel
from specdistill.decoding.draft_kinds import ModelDraft, ModelDrafting
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal, flatten, no_proposal, probabilities
from specdistill.decoding.generation import check_lengths
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.head_draft import HeadDraft
from specdistill.decoding.sampling import Keys, Sampling, draw, ids_of
from specdistill.decoding.transfers import to_device
from specdistill.models import LanguageModel
from specdistill.models.head_draft import HeadModel


def draft_of(model: LanguageModel) -> ModelDraft:
    """How a model drafts: as a head, in one pass where its configuration names a mask token, else token by token."""
    if isinstance(model, HeadModel):
        return HeadDraft(model)
    return ModelDraft(model) if model.parallel is None else ParallelDraft(model, model.parallel.mask_id)


class ParallelDraft(ModelDraft):
    """A language model that proposes all tokens of a round in one pass.

    Args:
        model: As for `ModelDraft`.
        mask_id: Id of its mask token.
    """

    def __init__(self, model: LanguageModel, mask_id: int) -> None:
        super().__init__(model)
        self._mask_id = mask_id

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, target: TargetCache
    ) -> ParallelDrafting:
        check_lengths(prompts, max_new_tokens, self.model)
        return ParallelDrafting(self.model, self._mask_id, prompts, room, sampling)


class ParallelDrafting(ModelDrafting):
    """Such a model at work, and its cache."""

    def __init__(
        self, model: LanguageModel, mask_id: int, prompts: list[list[int]], room: int, sampling: Sampling
    ) -> None:
        super().__init__(model, prompts, room, sampling)
        self._mask_id = mask_id

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        model = self._cached.model
        rows = [row for row, limit in enumerate(limits) for _ in range(limit)]
        if not rows:
            return no_proposal(limits, None if self._sampling.greedy else model.vocab_size, model.device), limits
        unread = [text[read:] for text, read in zip(texts, self._cached.lengths, strict=True)]
        hidden = read_with_masks(self._cached, unread, [self._mask_id] * (max(limits) - 1))
        own = self._cached.own_logits(flatten(hidden, limits))
        ahead = to_device([depth for limit in limits for depth in range(limit)], model.device)
        columns = draw(own, self._sampling, keys.of_rows(rows), from_draft=True, ahead=ahead)
        counts = limits
        if length.watches_confidence:
            counts = _confident(probabilities(own, columns, self._sampling), limits, length)
            kept = [
                first + depth for first, count in zip(_firsts(limits), counts, strict=True) for depth in range(count)
            ]
            index = to_device(kept, model.device)
            own, columns = own[index], columns[index]
        logits = None if self._sampling.greedy else model.to_vocabulary(own)
        return Proposal(ids_of(model, columns), to_device(counts, model.device).cumsum(0), logits), counts


def read_with_masks(cached: CachedModel, unread: Sequence[list[int]], masks: list[int]) -> Tensor:
    """Lets each row read its tokens and mask tokens behind them, and keep the tokens only.

    Args:
        cached: The draft.
        unread: New tokens of each row, at least one.
        masks: Ids of the mask tokens, the same for every row.

    Returns:
        Hidden states [batch, 1 + masks, hidden] of each row's last token and of the mask tokens.
    """
    longest = max(map(len, unread))
    if longest > EXTENT or max(cached.lengths) + longest + len(masks) > cached.capacity:
        # Long texts are read in as many passes as memory asks for.
        for _ in cached.passes([ids[:-1] for ids in unread]):
            pass
        unread, longest = [ids[-1:] for ids in unread], 1
    device = cached.model.device
    padded = [ids + masks + [0] * (longest - len(ids)) for ids in unread]
    hidden = cached.forward(to_device(padded, device))
    cached.advance([len(ids) for ids in unread])
    last = to_device([len(ids) - 1 for ids in unread], device)[:, None]
    return hidden.take_along_dim((last + torch.arange(1 + len(masks), device=device))[:, :, None], 1)


def _firsts(limits: list[int]) -> list[int]:
    """Place of each row's first token where rows lie one after the other."""
    return [end - limit for end, limit in zip(itertools.accumulate(limits), limits, strict=True)]


def _confident(chances: list[float], limits: list[int], length: DraftLength) -> list[int]:
    """How many of its tokens each row proposes: none after the one with which it became unsure."""
    counts = []
    for first, limit in zip(_firsts(limits), limits, strict=True):
        confidence, count = 1.0, limit
        for depth in range(limit):
            confidence *= chances[first + depth]
            if not length.goes_on(confidence):
                count = depth + 1
                break
        counts.append(count)
    return counts
