"""The definition of every acceptance statistic, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class AcceptanceStatistics(NamedTuple):
    """Per-token statistics, each [tokens]. p is the target's distribution, q the draft's, x the emitted token."""

    sampled: Tensor
    """sum_v min(p, q): acceptance when the server samples with draft probabilities."""
    argmax_draft: Tensor
    """p(argmax q): acceptance when the draft proposes its argmax and the target samples."""
    greedy: Tensor
    """1 where argmax p = argmax q: acceptance at temperature 0."""
    target_entropy: Tensor
    """Entropy of p in nats."""
    draft_entropy: Tensor
    """Entropy of q in nats."""
    fkl: Tensor
    """KL(target || draft) in nats; inf where q is 0 and p is not (a trimmed draft)."""
    token_acceptance: Tensor | None
    """min(1, q(x) / p(x)): the probability that the emitted x came from the draft. None where x was not given."""
    draft_argmax: Tensor
    """argmax q, int64; the lowest id where several tie."""


def acceptance_statistics(
    target_logits: Tensor, draft_logits: Tensor, token_ids: Tensor | None = None
) -> AcceptanceStatistics:
    """Computes `expected_acceptance`. float64 stays float64; everything else is computed in float32."""
    dtype = torch.float64 if target_logits.dtype == torch.float64 else torch.float32
    log_p = target_logits.to(dtype).log_softmax(-1)
    log_q = draft_logits.to(dtype).log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    # NaN anywhere, or nothing finite, makes a whole row of its log-softmax NaN.
    undefined = (log_p + log_q).isnan().all(-1)
    draft_argmax = log_q.argmax(-1).masked_fill(undefined, 0)
    token_acceptance = None
    if token_ids is not None:
        log_ratio = (log_q - log_p).gather(1, token_ids[:, None].long())[:, 0]
        token_acceptance = log_ratio.clamp(max=0).exp()
    # 0 * (-inf) is NaN; terms of probability 0 are 0 by continuity.
    statistics = (
        torch.minimum(p, q).sum(-1),
        p.gather(1, draft_argmax[:, None])[:, 0],
        (log_p.argmax(-1) == draft_argmax).to(dtype),
        -torch.where(p > 0, p * log_p, 0).sum(-1),
        -torch.where(q > 0, q * log_q, 0).sum(-1),
        torch.where(p > 0, p * (log_p - log_q), 0).sum(-1),
    )
    if token_acceptance is not None:
        token_acceptance = token_acceptance.masked_fill(undefined, torch.nan)
    masked = [statistic.masked_fill(undefined, torch.nan) for statistic in statistics]
    return AcceptanceStatistics._make([*masked, token_acceptance, draft_argmax])
