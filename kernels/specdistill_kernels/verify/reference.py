"""The definition of verification for one row, in plain torch. p is the target's distribution, q the draft's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("greedy", "sampled", "argmax_draft", "block", "lenient")
"""The last one is lossy: what it emits does not follow the target."""


class Verified(NamedTuple):
    """What verification decided for each row."""

    num_accepted: Tensor
    """Draft tokens kept, int64 [batch]."""
    next_token: Tensor
    """The token after them, int64 [batch]: the correction, or the bonus token when all were kept; -1 for none."""


def verify_row(
    target_logits: Tensor,
    draft_ids: Tensor,
    draft_logits: Tensor | None,
    rule: str,
    generator: torch.Generator | None,
    lenience: float = 1.0,
) -> tuple[int, int]:
    """Accepted count and next token of one row.

    Shapes: target_logits [n + 1, vocab], draft_ids [n], draft_logits [n, vocab] or None.
    """
    drafted = draft_ids.shape[0]
    if rule == "greedy":
        best = target_logits.argmax(-1)
        mismatch = (best[:drafted] != draft_ids).nonzero()
        count = int(mismatch[0, 0]) if len(mismatch) else drafted
        return count, int(best[count])
    assert generator is not None, "checked by verify"
    p = target_logits.float().softmax(-1)
    if rule == "argmax_draft":
        q = torch.nn.functional.one_hot(draft_ids, p.shape[-1]).to(p.dtype)
    else:
        assert draft_logits is not None, "checked by verify"
        q = draft_logits.float().softmax(-1)
    if rule == "block":
        count, residual = _longest_block(p, q, draft_ids, generator)
    else:
        count, residual = _longest_prefix(p, q, draft_ids, generator, lenience if rule == "lenient" else 1.0)
    # Where p and q differ by rounding alone the residual can vanish; the target itself is then the right law.
    weights = residual if residual.sum() > 0 else p[count]
    return count, int(torch.multinomial(weights, 1, generator=generator))


def _longest_prefix(
    p: Tensor, q: Tensor, draft_ids: Tensor, generator: torch.Generator, lenience: float
) -> tuple[int, Tensor]:
    """Token by token: keep x with probability min(1, p / (lenience q)), then draw from (p - lenience q)+."""
    for position, token in enumerate(draft_ids.tolist()):
        # u < p/q written without the division: q > 0 for a token that was drawn from q, but p may be 0.
        uniform = torch.rand((), generator=generator, device=p.device)
        if uniform * lenience * q[position, token] < p[position, token]:
            continue
        return position, (p[position] - lenience * q[position]).clamp(min=0)
    return len(draft_ids), p[-1]


def _longest_block(p: Tensor, q: Tensor, draft_ids: Tensor, generator: torch.Generator) -> tuple[int, Tensor]:
    """Jointly: keep the longest prefix i whose coin falls under h_i, then draw from (w_i p - q)+.

    w_i = min(1, w_(i-1) p(x_i) / q(x_i)) is the prefix's running weight, w_0 = 1. With the residual mass
    s_i = sum_v (w_i p_(i+1)(v) - q_(i+1)(v))+, h_i = s_i / (s_i + 1 - w_i) inside the block and h_n = w_n at its end.
    Source: Sun et al. 2024 (arXiv 2403.10444), Algorithm 2.
    """
    weight, kept, kept_weight = 1.0, 0, 1.0
    for position, token in enumerate(draft_ids.tolist()):
        weight = min(1.0, weight * float(p[position, token]) / float(q[position, token]))
        if position + 1 < len(draft_ids):
            mass = float((weight * p[position + 1] - q[position + 1]).clamp(min=0).sum())
            # Both vanish only when the prefix is certain and the laws ahead agree: nothing then speaks against it.
            chance = mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1.0
        else:
            chance = weight
        if float(torch.rand((), generator=generator, device=p.device)) < chance:
            kept, kept_weight = position + 1, weight
    if kept == len(draft_ids):
        return kept, p[-1]
    return kept, (kept_weight * p[kept] - q[kept]).clamp(min=0)
