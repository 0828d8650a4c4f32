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
"""The last one is lossy: what it emits does not follow the target."""


class Verified(NamedTuple):
    """What verification decided for each request."""

    num_accepted: Tensor
    """Draft tokens kept, int64 [batch]."""
    next_token: Tensor
    """The token after them, int64 [batch]: the correction, or the bonus token when all were kept; -1 for none."""


@dataclass
class _Batch:
    """The rows and randomness of all requests, and what was decided. `of` below is int64 [n], request numbers."""

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

    def targets(self, of: Tensor, position: Tensor | int) -> Tensor:
        """Target rows of requests at a position (every request before them has one more target row than draft rows)."""
        return self.target[self.first[of] + of + position]

    def proposed(self, of: Tensor, position: Tensor | int) -> Tensor:
        """Draft tokens; -1, a placeholder, behind the last one."""
        if not len(self.draft_ids):
            return torch.full_like(of, -1)
        ids = self.draft_ids[(self.first[of] + position).clamp(max=len(self.draft_ids) - 1)]
        return ids.masked_fill(self.counts[of] <= position, -1)

    def own_tokens(self, of: Tensor, position: Tensor | int) -> Tensor:
        """What the target itself emits at a position; -1 where its row is undefined."""
        keys = (self.seeds[of], self.emitted[of] + position, torch.zeros_like(of))
        return sample_rows(self.targets(of, position), keys, noise.TARGET, self.settings.of_rows(of))

    def all_coins(self) -> Tensor:
        """Of every position of every request, [batch, positions]."""
        positions = torch.arange(max(1, int(self.counts.max())), device=self.cu.device)
        seeds, emitted = (each[:, None].expand(-1, len(positions)) for each in (self.seeds, self.emitted))
        found = noise.coins(seeds.flatten(), (emitted + positions).flatten(), emitted.flatten())
        return found.view(seeds.shape)

    def laws(self, of: Tensor, position: Tensor | int) -> tuple[Tensor, Tensor]:
        """p and q at a position, [n, vocab]; NaN where a row is undefined."""
        assert self.draft is not None, "checked by verify"
        settings = self.settings.of_rows(of)
        p, draft = _law(self.targets(of, position), settings), self.draft[self.first[of] + position]
        if not self.given:
            return p, _law(draft, settings)
        # Filters' laws are NaN in every column of an undefined row, or in none.
        strange = (draft.isnan() | draft.isinf()).any(-1, keepdim=True)
        return p, draft.to(p.dtype).masked_fill(strange, torch.nan)


def _law(logits: Tensor, settings: SamplingSettings) -> Tensor:
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
    """See `verify`; keys are seeds and positions, each [batch]; `given` says that draft_logits are probabilities."""
    ids, cu = draft_token_ids.long(), cu_num_draft_tokens.long()
    batch = _Batch(target_logits, ids, draft_logits, cu, keys[0], keys[1], settings, given)
    alone = settings.temperature == 0
    if rule == "argmax_draft":
        alone = torch.ones_like(alone)
    _keep_own_tokens(batch, alone.nonzero()[:, 0])
    of = (~alone).nonzero()[:, 0]
    if len(of):
        p_share = _longest_block(batch, of) if rule == "block" else _longest_prefix(batch, of, lenience)
        _draw_next(batch, of, p_share, lenience)
    return Verified(batch.accepted, batch.following)


def _keep_own_tokens(batch: _Batch, of: Tensor) -> None:
    """Keeps draft tokens while they are what the target itself emits."""
    position = 0
    while len(of):
        own = batch.own_tokens(of, position)
        batch.accepted[of], batch.following[of] = position, own
        # An undefined row gives -1, and so does a placeholder.
        of = of[(own == batch.proposed(of, position)) & (own >= 0)]
        position += 1


def _ratio(p: Tensor, q: Tensor, tokens: Tensor) -> Tensor:
    """p(x) / q(x): 1 for equal laws, however they round; NaN where a row is undefined or x is a placeholder."""
    inside = (tokens >= 0) & (tokens < p.shape[1])
    column = torch.where(inside, tokens, 0)[:, None]
    ratio = (p.gather(1, column) / q.gather(1, column))[:, 0]
    # A row of probabilities holds NaN everywhere or nowhere.
    return ratio.masked_fill(~inside | p[:, 0].isnan() | q[:, 0].isnan(), torch.nan)


def _longest_prefix(batch: _Batch, of: Tensor, lenience: float) -> Tensor:
    """Token by token: keeps x with probability min(1, p / (lenience q)). Returns p's weight in the residual."""
    going, position = of, 0
    coins = batch.all_coins()
    while len(going := going[batch.counts[going] > position]):
        ratio = _ratio(*batch.laws(going, position), batch.proposed(going, position))
        going = going[coins[going, position] < ratio / lenience]
        batch.accepted[going] += 1
        position += 1
    return torch.ones(len(of), device=of.device)


def _longest_block(batch: _Batch, of: Tensor) -> Tensor:
    """Jointly: keeps the longest prefix i whose coin falls under h_i. Returns p's weight in the residual (w_i p - q)+.

    w_i = min(1, w_(i-1) p(x_i) / q(x_i)) is the prefix's running weight, w_0 = 1. With the residual mass
    s_i = sum_v (w_i p_(i+1)(v) - q_(i+1)(v))+, h_i = s_i / (s_i + 1 - w_i) inside the block and h_n = w_n at its end.
    Source: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    weights = torch.ones(len(batch.cu), device=of.device, dtype=torch.float64)
    kept_weights = weights.clone()
    going, position = of[batch.counts[of] > 0], 0
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
            # Both vanish only when the prefix is certain and the laws ahead agree: nothing then speaks against it.
            chance[inner] = torch.where(spoken > 0, mass / spoken, 1.0)
        kept = going[coins < chance]
        batch.accepted[kept], kept_weights[kept] = position + 1, weights[kept]
        going = going[inner]
        position += 1
    return kept_weights[of]


def _draw_next(batch: _Batch, of: Tensor, p_share: Tensor, q_share: float) -> None:
    """The token behind what was kept: from (a p - b q)+, or from p itself behind a whole draft or a placeholder."""
    kept = batch.accepted[of]
    proposed = batch.proposed(of, kept)
    taken = (proposed >= 0) & (proposed < batch.target.shape[1])
    if taken.any():
        some, at = of[taken], kept[taken]
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
    plain = of[~taken]
    if len(plain):
        batch.following[plain] = batch.own_tokens(plain, kept[~taken])
