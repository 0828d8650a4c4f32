"""The definition of membership, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def membership(logits: Tensor, token_ids: Tensor, top_k: int) -> Tensor:
    """A member has fewer than K ids ahead of it: larger logits, and equal logits with a lower id."""
    own = logits.gather(1, token_ids[:, None].long())
    columns = torch.arange(logits.shape[1], device=logits.device)
    ahead = (logits > own) | ((logits == own) & (columns < token_ids[:, None]))
    # NaN compares false with everything, so a token whose own logit is NaN would pass; it is no member.
    return (ahead.sum(-1) < top_k) & ~own[:, 0].isnan()
