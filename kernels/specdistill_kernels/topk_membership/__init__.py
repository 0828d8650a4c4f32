"""Is a given token among the row's K largest logits: the test that speculative KD puts to every draft token."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["topk_membership"]


def topk_membership(logits: Tensor, token_ids: Tensor, top_k: int) -> Tensor:
    """Tells, by counting larger logits instead of sorting, whether each token is in its row's top K.

    In plain torch: `(logits.topk(top_k).indices == token_ids[:, None]).any(-1)`, with ties going to the lower id.

    Args:
        logits: [tokens, vocab], *raw*: temperature does not change ranks, but top-p must not have been applied (it sets
            most entries to -inf, and the top K would then be filled with arbitrary ids).
        token_ids: int64 [tokens].
        top_k: K, at least 1.

    Returns:
        bool [tokens].

    Raises:
        ValueError: top_k < 1 or the shapes disagree.

    Source: Xu et al. 2024 (arXiv 2410.11325), Algorithm 1.
    """
    if top_k < 1:
        raise ValueError(f"expected top_k >= 1, got {top_k}")
    if logits.ndim != 2 or token_ids.shape != logits.shape[:1]:
        raise ValueError(
            "expected logits [tokens, vocab] and token_ids [tokens], got "
            f"{tuple(logits.shape)} and {tuple(token_ids.shape)}"
        )
    own = logits.gather(1, token_ids[:, None])
    larger = (logits > own).sum(-1)
    columns = torch.arange(logits.shape[1], device=logits.device)
    tied_before = ((logits == own) & (columns < token_ids[:, None])).sum(-1)
    return larger + tied_before < top_k
