"""The draft that guesses several tokens in one pass, each behind a mask token of its own (see `models.parallel`).

One pass per round reads the tokens that were kept since the last one, then as many mask tokens as tokens are wanted
beyond the first. Each proposal is drawn from its own row, so it does not depend on the other proposals. The cache
keeps the text and no mask token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill.decoding.cached_model import EXTENT, CachedModel
from specdistill.decoding.draft_kinds import ModelDraft, ModelDrafting
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal, probabilities
from specdistill.decoding.generation import check_lengths
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.head_draft import HeadDraft
from specdistill.decoding.sampling import Keys, Sampling, pick
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
        model, device = self._cached.model, self._cached.model.device
        rows = [row for row, limit in enumerate(limits) for _ in range(limit)]
        depths = [depth for limit in limits for depth in range(limit)]
        if not rows:
            ids = torch.empty(0, dtype=torch.int64, device=device)
            logits = None if self._sampling.greedy else torch.empty(0, model.vocab_size, device=device)
            return Proposal(ids, torch.tensor(limits, device=device).cumsum(0), logits), limits
        unread = [text[read:] for text, read in zip(texts, self._cached.lengths, strict=True)]
        hidden = read_with_masks(self._cached, unread, [self._mask_id] * (max(limits) - 1))
        own = self._cached.own_logits(hidden[rows, depths])
        ahead = torch.tensor(depths, device=device)
        picked = pick(own, self._sampling, keys.of_rows(rows), from_draft=True, ahead=ahead)
        counts = limits
        if length.watches_confidence:
            counts = _confident(probabilities(own, picked, self._sampling), limits, length)
        kept = [place for place, (row, depth) in enumerate(zip(rows, depths, strict=True)) if depth < counts[row]]
        logits = None if self._sampling.greedy else model.to_vocabulary(own[kept])
        cumulative = torch.tensor(counts, device=device).cumsum(0)
        return Proposal(model.to_token_ids(picked[kept]), cumulative, logits), counts


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
    hidden = cached.forward(torch.tensor(padded, device=device))
    cached.advance([len(ids) for ids in unread])
    last = torch.tensor([len(ids) - 1 for ids in unread], device=device)[:, None]
    rows = torch.arange(len(unread), device=device)[:, None]
    return hidden[rows, last + torch.arange(1 + len(masks), device=device)]


def _confident(chances: list[float], limits: list[int], length: DraftLength) -> list[int]:
    """How many of its tokens each row proposes: none after the one with which it became unsure."""
    counts, first = [], 0
    for limit in limits:
        confidence, count = 1.0, limit
        for depth in range(limit):
            confidence *= chances[first + depth]
            if not length.goes_on(confidence):
                count = depth + 1
                break
        counts.append(count)
        first += limit
    return counts
