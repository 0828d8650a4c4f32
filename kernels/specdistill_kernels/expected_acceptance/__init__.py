"""The expected acceptance of one draft token at a position under every rule, from the two models' logits."""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels.backend import choose
from specdistill_kernels.expected_acceptance.reference import AcceptanceStatistics, acceptance_statistics

__all__ = ["AcceptanceStatistics", "expected_acceptance"]

# Rows held in float32 at a time are capped at this many entries (about 32 MiB a buffer).
_TILE_ENTRIES = 2**23


def expected_acceptance(
    target_logits: Tensor,
    draft_logits: Tensor,
    token_ids: Tensor | None = None,
    *,
    tile_rows: int | None = None,
    backend: str = "auto",
) -> AcceptanceStatistics:
    """Scores draft against target row by row, without materialising either probability matrix.

    In plain torch: `alpha = minimum(target_logits.softmax(-1), draft_logits.softmax(-1)).sum(-1)`, and similar sums.

    Args:
        target_logits: [tokens, vocab], any float dtype, after temperature and filters; -inf means probability 0.
        draft_logits: [tokens, vocab], in the same form. Both must cover the same ids: slice padded vocabularies first.
        token_ids: int32 or int64 [tokens], the token that was really emitted at each position, for `token_acceptance`.
        tile_rows: Rows computed at a time in torch; by default as many as fit 2**23 entries.
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`.

    Returns:
        One float32 value per token for each statistic; see `AcceptanceStatistics`. A row that holds NaN, or no finite
        logit at all, gives NaN for every statistic and 0 for `draft_argmax`.

    Raises:
        ValueError: The shapes disagree.
        RuntimeError: `fused` was asked for where it can't run.

    Source: Leviathan et al. 2023 (arXiv 2211.17192), Theorem 3.5: the acceptance rate is the overlap sum_v min(p, q).
    """
    if target_logits.ndim != 2 or target_logits.shape != draft_logits.shape:
        raise ValueError(
            "expected target_logits and draft_logits of one shape [tokens, vocab], got "
            f"{tuple(target_logits.shape)} and {tuple(draft_logits.shape)}; slice both to the shared vocabulary"
        )
    if token_ids is not None and token_ids.shape != target_logits.shape[:1]:
        raise ValueError(f"expected token_ids of shape [{target_logits.shape[0]}], got {tuple(token_ids.shape)}")
    if choose(backend, target_logits) == "fused":
        from specdistill_kernels.expected_acceptance.fused import expected_acceptance_fused

        return expected_acceptance_fused(target_logits, draft_logits, token_ids)
    rows = tile_rows or max(1, _TILE_ENTRIES // max(1, target_logits.shape[1]))
    tiles = [
        acceptance_statistics(
            target_logits[start : start + rows],
            draft_logits[start : start + rows],
            None if token_ids is None else token_ids[start : start + rows],
        )
        for start in range(0, max(1, target_logits.shape[0]), rows)
    ]
    columns = zip(*tiles, strict=True)
    return AcceptanceStatistics._make(None if column[0] is None else torch.cat(column) for column in columns)
