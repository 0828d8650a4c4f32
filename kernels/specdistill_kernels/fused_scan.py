"""Steps that several kernels share while they scan a row: its request and settings, running log-sum-exp and argmax.

Source of the online log-sum-exp: Milakov & Gimelshein 2018 (arXiv 1805.02867).
"""

from __future__ import annotations

import triton
import triton.language as tl

NOWHERE = tl.constexpr(2147483647)
"""A column number above every real one, so that it loses every tie."""


@triton.jit
def request_of(row, cu_ptr, batch, extra, BLOCK: tl.constexpr):
    """The request of a flat row, and the row's number within it. extra is 1 for target rows, which have a bonus row."""
    before = row.to(tl.int64)
    first = before
    if cu_ptr is not None:
        before = tl.full((), 0, tl.int64)
        first = tl.full((), 0, tl.int64)
        for start in range(0, batch, BLOCK):
            index = start + tl.arange(0, BLOCK)
            end = tl.load(cu_ptr + index, mask=index < batch, other=0).to(tl.int64) + extra * (index + 1)
            passed = (index < batch) & (end <= row)
            before += tl.sum(passed.to(tl.int64), 0)
            first = tl.maximum(first, tl.max(tl.where(passed, end, 0), 0))
    return before, row - first


@triton.constexpr_function
def _is_number(setting):
    return isinstance(setting, int | float) or not setting.dtype.is_ptr()


@triton.jit
def setting_of(setting, request):
    """A request's value of a setting, float32: the setting is one number, or a tensor with one per request."""
    if _is_number(setting):
        return tl.full((), setting, tl.float32)
    else:
        return tl.load(setting + request).to(tl.float32)


@triton.jit
def online(peak, total, scores):
    """Running maximum and sum of exponentials. A block without a finite score leaves the sum at zero."""
    new_peak = tl.maximum(peak, tl.max(scores, 0))
    shift = tl.where(new_peak == -float("inf"), 0.0, new_peak)
    return new_peak, total * tl.exp(peak - shift) + tl.sum(tl.exp(scores - shift), 0)


@triton.jit
def leftmost(best, best_at, scores, columns):
    """Running argmax. The lowest column wins ties, within a block and across blocks."""
    peak = tl.max(scores, 0)
    at = tl.min(tl.where(scores == peak, columns, NOWHERE), 0)
    better = peak > best
    return tl.where(better, peak, best), tl.where(better, at, best_at)


@triton.jit
def count_undefined(scores):
    """Number of NaN and +inf in a block. A maximum may skip NaN, and +inf makes a softmax NaN."""
    return tl.sum(((scores != scores) | (scores == float("inf"))).to(tl.int32), 0)
