"""The definition of verification, in plain torch, position by position. p is the target's law, q the draft's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specdistill_kernels import noise
from specdistill_kernels.filter_threshold.reference import filtered
from specdistill_kernels.sample.reference import sample_rows
from specdistill_kernels.sampling_settings import SamplingSettings

RULES = ("greedy", "sampled", "argmax_draft", "block", "lenient")
"""The last one is lossy: its output does not follow the target."""


class Verified(NamedTuple):
    """The decision of verification for each request."""

    num_accepted: Tensor
    """Draft tokens kept, int64 [batch]."""
    next_token: Tensor
    """The token after them, int64 [batch]: the correction, the bonus token when all were kept, or -1 for none."""


@dataclass
class _Batch:
    """Rows, randomness and decisions of all requests. In its methods `requests` is int64 [n], numbers of requests."""

    target: Tensor
    draft_ids: Tensor
    draft: Tensor | None
    cu: Tensor
    seeds: Tensor
    emitted: Tensor
    settings: SamplingSettings
    given: bool

    def __post_init__(self) -> None:
        self.counts = self.cu.diff(prepend=self.cu.new_zeros(1))
        self.first = self.cu - self.counts
        self.accepted = torch.zeros_like(self.cu)
        self.following = torch.full_like(self.cu, -1)

    def targets(self, requests: Tensor, position: Tensor | int) -> Tensor:
        """Target rows of requests at a position. Every earlier request has one more target row than draft rows."""
        return self.target[self.first[requests] + requests + position]

    def proposed(self, requests: Tensor, position: Tensor | int) -> Tensor:
        """Draft tokens of requests at a position; -1, a placeholder, after the last one."""
        if not len(self.draft_ids):
            return torch.full_like(requests, -1)
        ids = self.draft_ids[(self.first[requests] + position).clamp(max=len(self.draft_ids) - 1)]
        return ids.masked_fill(self.counts[requests] <= position, -1)

    def own_tokens(self, requests: Tensor, position: Tensor | int) -> Tensor:
        """Tokens that the target itself emits at a position; -1 where its row is undefined."""
        keys = (self.seeds[requests], self.emitted[requests] + position, torch.zeros_like(requests))
        return sample_rows(self.targets(requests, position), keys, noise.TARGET, self.settings.of_rows(requests))

    def all_coins(self) -> Tensor:
        """Coins of every position of every request, [batch, positions]."""
        positions = torch.arange(max(1, int(self.counts.max())), device=self.cu.device)
        seeds, emitted = (tensor[:, None].expand(-1, len(positions)) for tensor in (self.seeds, self.emitted))
        return noise.coins(seeds.flatten(), (emitted + positions).flatten(), emitted.flatten()).view(seeds.shape)

    def laws(self, requests: Tensor, position: Tensor | int) -> tuple[Tensor, Tensor]:
        """p and q at a position, [n, vocab]; NaN where a row is undefined."""
        assert self.draft is not None, "checked by verify"
        settings = self.settings.of_rows(requests)
        p, draft = _law(self.targets(requests, position), settings), self.draft[self.first[requests] + position]
        if not self.given:
            return p, _law(draft, settings)
        # The laws of filtered logits are NaN in every column of an undefined row, or in none.
        undefined = (draft.isnan() | draft.isinf()).any(-1, keepdim=True)
        return p, draft.to(p.dtype).masked_fill(undefined, torch.nan)


def _law(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Probabilities after filters and temperature, [rows, vocab]."""
    return (filtered(logits, settings) / settings.temperature[:, None]).softmax(-1)


def verify_requests(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    cu_num_draft_tokens: Tensor,
    draft_logits: Tensor | None,
    rule: str,
    keys: Sequence[Tensor],
    settings: SamplingSettings,
    lenience: float,
    given: bool,
) -> Verified:
    """Computes `verify`.

    Args:
        target_logits, draft_token_ids, cu_num_draft_tokens, draft_logits, rule: As in `verify`.
        keys: Seeds and positions, each int64 [batch].
        settings: One value per request.
        lenience: 1 for every rule but `lenient`.
        given: draft_logits are probabilities.
    """
    ids, cu = draft_token_ids.long(), cu_num_draft_tokens.long()
    batch = _Batch(target_logits, ids, draft_logits, cu, keys[0], keys[1], settings, given)
    alone = settings.temperature == 0
    if rule == "argmax_draft":
        alone = torch.ones_like(alone)
    _keep_own_tokens(batch, alone.nonzero()[:, 0])
    requests = (~alone).nonzero()[:, 0]
    if len(requests):
        p_share = _longest_block(batch, requests) if rule == "block" else _longest_prefix(batch, requests, lenience)
        _draw_next(batch, requests, p_share, lenience)
    return Verified(batch.accepted, batch.following)


def _keep_own_tokens(batch: _Batch, requests: Tensor) -> None:
    """Keeps draft tokens as long as they equal the tokens that the target itself emits."""
    position = 0
    while len(requests):
        own = batch.own_tokens(requests, position)
        batch.accepted[requests], batch.following[requests] = position, own
        # An undefined row gives -1, and so does a placeholder.
        requests = requests[(own == batch.proposed(requests, position)) & (own >= 0)]
        position += 1


def _ratio(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """p(x) / q(x): 1 for equal laws, however they round; NaN where a row is undefined or x is a placeholder."""
    inside = (tokens >= 0) & (tokens < p.shape[1])
    column = torch.where(inside, tokens, 0)[:, None]
    ratio = (p.gather(1, column) / q.gather(1, column))[:, 0]
    # A row of probabilities holds NaN everywhere or nowhere.
    return ratio.masked_fill(~inside | p[:, 0].isnan() | q[:, 0].isnan(), torch.nan)


def _longest_prefix(batch: _Batch, requests: Tensor, lenience: float) -> Tensor:
    """Token by token, keeps x with probability min(1, p / (lenience q)). Returns p's weight in the residual."""
    going, position = requests, 0
    coins = batch.all_coins()
    while len(going := going[batch.counts[going] > position]):
        ratio = _ratio(*batch.laws(going, position), batch.proposed(going, position))
        going = going[coins[going, position] < ratio / lenience]
        batch.accepted[going] += 1
        position += 1
    return torch.ones(len(requests), device=requests.device)


def _longest_block(batch: _Batch, requests: Tensor) -> Tensor:
    """Keeps the longest prefix i whose coin falls below h_i. Returns p's weight w_i in the residual (w_i p - q)+.

    w_i = min(1, w_(i-1) p(x_i) / q(x_i)) is the prefix's running weight, w_0 = 1. With the residual mass
    s_i = sum_v (w_i p_(i+1)(v) - q_(i+1)(v))+, h_i = s_i / (s_i + 1 - w_i) inside the block and h_n = w_n at its end.
    Source: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    weights = torch.ones(len(batch.cu), device=requests.device, dtype=torch.float64)
    kept_weights = weights.clone()
    going, position = requests[batch.counts[requests] > 0], 0
    every_coin = batch.all_coins()
    laws = batch.laws(going, 0) if len(going) else None
    while laws is not None:
        ratio = _ratio(*laws, batch.proposed(going, position))
        coins = every_coin[going, position]
        # NaN: nothing from this token on can be judged.
        judged = ~ratio.isnan()
        going, coins = going[judged], coins[judged]
        weights[going] = (weights[going] * ratio[judged]).clamp(max=1)
        weight = weights[going]
        chance = weight.clone()
        inner = batch.counts[going] > position + 1
        laws = batch.laws(going[inner], position + 1) if inner.any() else None
        if laws is not None:
            mass = (weight[inner, None] * laws[0] - laws[1]).clamp(min=0).nansum(-1)
            spoken = mass + 1 - weight[inner]
            # Both vanish only if the prefix is certain and the next laws agree: then the prefix is kept.
            chance[inner] = torch.where(spoken > 0, mass / spoken, 1.0)
        kept = going[coins < chance]
        batch.accepted[kept], kept_weights[kept] = position + 1, weights[kept]
        going = going[inner]
        position += 1
    return kept_weights[requests]


def _draw_next(batch: _Batch, requests: Tensor, p_share: Tensor, q_share: float) -> None:
    """Draws the token after the kept ones: from (a p - b q)+, or from p after a full draft or a placeholder."""
    kept = batch.accepted[requests]
    proposed = batch.proposed(requests, kept)
    taken = (proposed >= 0) & (proposed < batch.target.shape[1])
    if taken.any():
        some, at = requests[taken], kept[taken]
        p, q = batch.laws(some, at)
        residual = (p_share[taken, None].to(p.dtype) * p - q_share * q).clamp(min=0)
        # argmax(log r + gumbel), without the logarithms.
        race = noise.exponential(
            batch.seeds[some], batch.emitted[some] + at, torch.zeros_like(some), noise.TARGET, p.shape[1]
        )
        drawn = (residual / race).argmax(-1)
        batch.following[some] = drawn.masked_fill((p + q)[:, 0].isnan(), -1)
        # Where p and q differ by rounding alone the residual can vanish; the target itself is then the right law.
        taken[taken.clone()] = (residual.sum(-1) > 0) | residual[:, 0].isnan()
    plain = requests[~taken]
    if len(plain):
        batch.following[plain] = batch.own_tokens(plain, kept[~taken])
