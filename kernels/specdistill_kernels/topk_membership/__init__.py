"""Whether a given token is among its row's K largest logits: the test of speculative KD for every draft token."""

from __future__ import annotations

from torch import Tensor

from specdistill_kernels.backend import choose
from specdistill_kernels.topk_membership.reference import membership

__all__ = ["topk_membership"]


def topk_membership(logits: Tensor, token_ids: Tensor, top_k: int, *, backend: str = "auto") -> Tensor:
    """Finds whether each token is in its row's top K, by counting larger logits instead of sorting.

    In plain torch: `(logits.topk(top_k).indices == token_ids[:, None]).any(-1)`, with ties going to the lower id.

    Args:
        logits: [tokens, vocab], *raw*: temperature does not change ranks, but top-p must not have been applied (it sets
            most entries to -inf, and the top K would then be filled with arbitrary ids).
        token_ids: int32 or int64 [tokens].
        top_k: K, at least 1.
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`.

    Returns:
        bool [tokens]. A token whose own logit is NaN is no member; other NaNs of its row count as smaller.

    Raises:
        ValueError: top_k < 1 or the shapes disagree.
        RuntimeError: `fused` was asked for where it can't run.

    Source: Xu et al. 2024 (arXiv 2410.11325), Algorithm 1.
    """
    if top_k < 1:
        raise ValueError(f"expected top_k >= 1, got {top_k}")
    if logits.ndim != 2 or token_ids.shape != logits.shape[:1]:
        raise ValueError(
            "expected logits [tokens, vocab] and token_ids [tokens], got "
            f"{tuple(logits.shape)} and {tuple(token_ids.shape)}"
        )
    if choose(backend, logits) == "fused":
        from specdistill_kernels.topk_membership.fused import topk_membership_fused

        return topk_membership_fused(logits, token_ids, top_k)
    return membership(logits, token_ids, top_k)
