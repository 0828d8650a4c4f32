"""The definition of verification for one row, in plain torch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("greedy", "sampled", "argmax_draft")


class Verified(NamedTuple):
    """What verification decided for each row."""

    num_accepted: Tensor
    """Draft tokens kept, int64 [batch]."""
    next_token: Tensor
    """The token after them, int64 [batch]: the correction, or the bonus token when all were kept; -1 for none."""


def verify_row(
    target_logits: Tensor, draft_ids: Tensor, draft_logits: Tensor | None, rule: str, generator: torch.Generator | None
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
    for position in range(drafted):
        p = target_logits[position].float().softmax(-1)
        token = int(draft_ids[position])
        if rule == "sampled":
            assert draft_logits is not None, "checked by verify"
            q = draft_logits[position].float().softmax(-1)
        else:
            q = torch.zeros_like(p)
            q[token] = 1.0
        # u < p/q written without the division: q > 0 for a token that was drawn from q, but p may be 0.
        uniform = torch.rand((), generator=generator, device=p.device)
        if uniform * q[token] < p[token]:
            continue
        residual = (p - q).clamp(min=0)
        # Where p and q differ by rounding alone the residual can vanish; the target itself is then the right law.
        weights = residual if residual.sum() > 0 else p
        return position, int(torch.multinomial(weights, 1, generator=generator))
    p = target_logits[drafted].float().softmax(-1)
    return drafted, int(torch.multinomial(p, 1, generator=generator))
