"""Row statistics for verification with draft probabilities, per 8192 columns, and functions that combine them."""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.fused_scan import count_undefined, leftmost, request_of
from specdistill_kernels.sample.fused import token_of


@triton.jit
def bounds(request, cu_ptr):
    """First draft row of a request and its number of draft tokens."""
    first = tl.load(cu_ptr + request - 1, mask=request > 0, other=0).to(tl.int64)
    return first, tl.load(cu_ptr + request).to(tl.int64) - first


@triton.jit
def warm_temperature(temperature_ptr, request):
    """A request's temperature, or 1 for a greedy one, whose probabilities are unused: 0 can't divide."""
    temperature = tl.load(temperature_ptr + request)
    return tl.where(temperature > 0, temperature, 1.0)


@triton.jit
def verify_statistics_kernel(
    logits_ptr,
    lowest_ptr,
    cu_ptr,
    temperature_ptr,
    peak_ptr,
    total_ptr,
    at_ptr,
    stride,
    vocab,
    batch,
    groups,
    EXTRA: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row's group of 4 TILE columns: maximum, its column, sum of exponentials (NaN if a logit is NaN or +inf)."""
    row, group = tl.program_id(0), tl.program_id(1)
    request, _ = request_of(row, cu_ptr, batch, EXTRA, 1024)
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    start_ptr = logits_ptr + row.to(tl.int64) * stride
    temperature = warm_temperature(temperature_ptr, request)
    lowest = -float("inf")
    if lowest_ptr is not None:
        lowest = tl.load(lowest_ptr + row)
    peak, total, at, undefined = -float("inf"), 0.0, 0, 0
    for lane in tl.static_range(4):
        columns = (group * 4 + lane) * TILE + tl.arange(0, TILE)
        scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        undefined += count_undefined(scores)
        new_peak, at = leftmost(peak, at, scores, columns)
        scores = tl.where(scores >= lowest, scores, -float("inf")) / temperature
        # A tile without a finite score leaves the sum at zero. The peak is taken before the filters, which keep it, so
        # it is the argmax's as well.
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak) / temperature
        old = tl.where(peak == -float("inf"), 0.0, tl.exp(peak / temperature - shift))
        total = total * old + tl.sum(tl.exp(scores - shift), 0)
        peak = new_peak
    out = row.to(tl.int64) * groups + group
    tl.store(peak_ptr + out, peak)
    tl.store(at_ptr + out, at)
    tl.store(total_ptr + out, tl.where(undefined > 0, float("nan"), total))


@triton.jit
def log_sum_exp(peak_ptr, total_ptr, row, groups, temperature, BLOCK: tl.constexpr):
    """Log-sum-exp of a row from its groups; NaN where the row is undefined or has nothing above -inf."""
    index = tl.arange(0, BLOCK)
    peaks = tl.load(peak_ptr + row * groups + index, mask=index < groups, other=-float("inf"))
    totals = tl.load(total_ptr + row * groups + index, mask=index < groups, other=0.0)
    peak = tl.max(peaks, 0)
    shift = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.sum(totals * tl.exp((peaks - shift) / temperature), 0)
    return tl.where(total > 0, shift / temperature + tl.log(total), float("nan"))


@triton.jit
def argmax_of(peak_ptr, total_ptr, at_ptr, row, groups, BLOCK: tl.constexpr):
    """Argmax of a row from its groups, the lowest column on ties; -1 where the row is undefined."""
    index = tl.arange(0, BLOCK)
    totals = tl.load(total_ptr + row * groups + index, mask=index < groups, other=0.0)
    undefined = tl.sum((totals != totals).to(tl.int32), 0) > 0
    return tl.where(undefined, -1, token_of(peak_ptr, at_ptr, row, groups, BLOCK))


@triton.jit
def probability(scores, lowest, temperature, lse, GIVEN: tl.constexpr):
    """Probabilities of a block of logits, 0 where they were filtered out. GIVEN: the scores are probabilities."""
    if GIVEN:
        return scores
    else:
        return tl.where(scores >= lowest, tl.exp(scores / temperature - lse), 0.0)


@triton.jit
def _log_probability(logits_ptr, lowest_ptr, row, token, stride, temperature, lse, GIVEN: tl.constexpr):
    """Log-probability of one token; -inf where it was filtered out, NaN where the row is undefined."""
    score = tl.load(logits_ptr + row * stride + token).to(tl.float32)
    if GIVEN:
        return tl.where(lse == lse, tl.log(score), lse)
    else:
        if lowest_ptr is not None:
            score = tl.where(score >= tl.load(lowest_ptr + row), score, -float("inf"))
        return score / temperature - lse


@triton.jit
def log_ratio(
    target_ptr,
    draft_ptr,
    target_lowest_ptr,
    draft_lowest_ptr,
    target_lse,
    draft_lse,
    row,
    draft_row,
    token,
    target_stride,
    draft_stride,
    vocab,
    temperature,
    GIVEN: tl.constexpr,
):
    """log p(x) - log q(x); NaN for a placeholder or an undefined row."""
    inside = (token >= 0) & (token < vocab)
    safe = tl.where(inside, token, 0)
    log_p = _log_probability(target_ptr, target_lowest_ptr, row, safe, target_stride, temperature, target_lse, False)
    log_q = _log_probability(draft_ptr, draft_lowest_ptr, draft_row, safe, draft_stride, temperature, draft_lse, GIVEN)
    return tl.where(inside, log_p - log_q, float("nan"))
