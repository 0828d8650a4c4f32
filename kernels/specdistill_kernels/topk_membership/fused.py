"""Top-K membership in Triton: one pass over the row counts the logits that are larger than the token's own.

Reads the row once, 2 bytes per vocabulary entry for bfloat16, and writes one flag. Sorting, or even torch.topk, would
read it several times and write K values and indices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of

BLOCK, THREADS = 8192, 256


@triton.jit
def topk_membership_fwd_kernel(logits_ptr, token_ptr, out_ptr, stride, vocab, top_k, BLOCK: tl.constexpr):
    """One row: counts the ids that rank ahead of the token."""
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    row = tl.program_id(0).to(tl.int64)
    start_ptr = logits_ptr + row * stride
    token = tl.load(token_ptr + row)
    own = tl.load(start_ptr + token).to(tl.float32)
    before = 0
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        # Padding is -inf too and must not tie with a token of probability 0: its columns lie behind every token's.
        ahead = (scores > own) | ((scores == own) & (columns < token))
        before += tl.sum(ahead.to(tl.int32), 0)
    # A token whose own logit is NaN compares false with everything; it is no member.
    tl.store(out_ptr + row, (before < top_k) & (own == own))


def topk_membership_fused(logits: Tensor, token_ids: Tensor, top_k: int, block: int = BLOCK) -> Tensor:
    """Computes `topk_membership` with the kernel, `block` columns at a time."""
    logits, token_ids = unit_stride(logits), token_ids.contiguous()
    out = torch.empty(logits.shape[0], dtype=torch.bool, device=logits.device)
    if logits.shape[0]:
        topk_membership_fwd_kernel[(logits.shape[0],)](
            logits,
            token_ids,
            out,
            logits.stride(0),
            logits.shape[1],
            top_k,
            BLOCK=block,
            num_warps=warps_of(THREADS),
        )
    return out
