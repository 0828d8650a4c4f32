"""Acceptance statistics of two logits rows in Triton: no probability is ever written.

One program per row makes two passes over the vocabulary in blocks. The first yields both rows' argmax and log-sum-exp
(online: running maximum and rescaled sum). The second computes p = exp(z_t - lse_t) and q = exp(z_d - lse_d) in
registers and sums min(p, q), p log p, q log q and p (log p - log q). Each row is read twice: 8 bytes per vocabulary
entry for a pair of bfloat16 rows. A few numbers per row are written. Forward only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.expected_acceptance.reference import AcceptanceStatistics
from specdistill_kernels.fused_scan import leftmost, online

# 8 entries of each row per thread: one 16-byte load of bfloat16, and both float32 tiles stay in registers on every
# target (16 entries spilled on sm_80 and sm_100). benchmarks/ops/kernel_report.py prints what the compilers make of it.
BLOCK, THREADS = 2048, 256


@triton.jit
def expected_acceptance_fwd_kernel(
    target_ptr,
    draft_ptr,
    token_ptr,
    out_ptr,
    argmax_ptr,
    target_stride,
    draft_stride,
    rows,
    vocab,
    BLOCK: tl.constexpr,
):
    """One row: both log-sum-exps and argmaxes, then the sums. out is [7, rows] float32, in the statistics' order."""
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    row = tl.program_id(0).to(tl.int64)
    target_row, draft_row = target_ptr + row * target_stride, draft_ptr + row * draft_stride
    target_peak, target_sum, target_best, target_at = -float("inf"), 0.0, -float("inf"), 0
    draft_peak, draft_sum, draft_best, draft_at = -float("inf"), 0.0, -float("inf"), 0
    nans = 0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab
        target = tl.load(target_row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        draft = tl.load(draft_row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        # A maximum may skip NaN, so NaN is counted separately.
        nans += tl.sum(((target != target) | (draft != draft)).to(tl.int32), 0)
        target_peak, target_sum = online(target_peak, target_sum, target)
        draft_peak, draft_sum = online(draft_peak, draft_sum, draft)
        target_best, target_at = leftmost(target_best, target_at, target, columns)
        draft_best, draft_at = leftmost(draft_best, draft_at, draft, columns)
    undefined = (nans > 0) | (target_sum == 0.0) | (draft_sum == 0.0)
    target_lse, draft_lse = target_peak + tl.log(target_sum), draft_peak + tl.log(draft_sum)

    overlap, target_entropy, draft_entropy, divergence = 0.0, 0.0, 0.0, 0.0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < vocab
        log_p = tl.load(target_row + columns, mask=inside, other=-float("inf")).to(tl.float32) - target_lse
        log_q = tl.load(draft_row + columns, mask=inside, other=-float("inf")).to(tl.float32) - draft_lse
        p, q = tl.exp(log_p), tl.exp(log_q)
        overlap += tl.sum(tl.minimum(p, q), 0)
        # 0 * (-inf) is NaN; terms of probability 0 are 0 by continuity.
        target_entropy -= tl.sum(tl.where(p > 0, p * log_p, 0.0), 0)
        draft_entropy -= tl.sum(tl.where(q > 0, q * log_q, 0.0), 0)
        divergence += tl.sum(tl.where(p > 0, p * (log_p - log_q), 0.0), 0)

    proposed = tl.load(target_row + draft_at).to(tl.float32)
    nan = float("nan")
    tl.store(out_ptr + row, tl.where(undefined, nan, overlap))
    tl.store(out_ptr + rows + row, tl.where(undefined, nan, tl.exp(proposed - target_lse)))
    tl.store(out_ptr + 2 * rows + row, tl.where(undefined, nan, tl.where(target_at == draft_at, 1.0, 0.0)))
    tl.store(out_ptr + 3 * rows + row, tl.where(undefined, nan, target_entropy))
    tl.store(out_ptr + 4 * rows + row, tl.where(undefined, nan, draft_entropy))
    tl.store(out_ptr + 5 * rows + row, tl.where(undefined, nan, divergence))
    tl.store(argmax_ptr + row, tl.where(undefined, 0, draft_at).to(tl.int64))
    if token_ptr is not None:
        token = tl.load(token_ptr + row)
        own_q = tl.load(draft_row + token).to(tl.float32) - draft_lse
        own_p = tl.load(target_row + token).to(tl.float32) - target_lse
        tl.store(out_ptr + 6 * rows + row, tl.where(undefined, nan, tl.exp(tl.minimum(own_q - own_p, 0.0))))


def expected_acceptance_fused(
    target_logits: Tensor, draft_logits: Tensor, token_ids: Tensor | None, block: int = BLOCK
) -> AcceptanceStatistics:
    """Computes `expected_acceptance` with the kernel, `block` columns at a time."""
    rows, vocab = target_logits.shape
    target_logits, draft_logits = unit_stride(target_logits), unit_stride(draft_logits)
    token_ids = None if token_ids is None else token_ids.contiguous()
    out = torch.empty(7, rows, dtype=torch.float32, device=target_logits.device)
    argmax = torch.empty(rows, dtype=torch.int64, device=target_logits.device)
    if rows:
        expected_acceptance_fwd_kernel[(rows,)](
            target_logits,
            draft_logits,
            token_ids,
            out,
            argmax,
            target_logits.stride(0),
            draft_logits.stride(0),
            rows,
            vocab,
            BLOCK=block,
            num_warps=warps_of(THREADS),
        )
    return AcceptanceStatistics._make([*out[:6], None if token_ids is None else out[6], argmax])
