"""What verification with draft probabilities needs of a row: statistics per 8192 columns, and their sums."""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.filter_threshold.fused import request_of
from specdistill_kernels.sample.fused import NOWHERE


@triton.jit
def bounds(request, cu_ptr):
    """First draft row of a request and its number of draft tokens."""
    first = tl.load(cu_ptr + request - 1, mask=request > 0, other=0).to(tl.int64)
    return first, tl.load(cu_ptr + request).to(tl.int64) - first


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
    """One row's group of 4 TILE columns: maximum, its column, sum of exponentials (NaN where it holds NaN, +inf)."""
    row, group = tl.program_id(0), tl.program_id(1)
    request, _ = request_of(row, cu_ptr, batch, EXTRA, 1024)
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    start_ptr = logits_ptr + row.to(tl.int64) * stride
    temperature = tl.load(temperature_ptr + request)
    # A greedy request reads the argmax only.
    temperature = tl.where(temperature > 0, temperature, 1.0)
    lowest = -float("inf")
    if lowest_ptr is not None:
        lowest = tl.load(lowest_ptr + row)
    peak, total, at, strange = -float("inf"), 0.0, 0, 0
    for lane in tl.static_range(4):
        columns = (group * 4 + lane) * TILE + tl.arange(0, TILE)
        scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        strange += tl.sum(((scores != scores) | (scores == float("inf"))).to(tl.int32), 0)
        tile_peak = tl.max(scores, 0)
        tile_at = tl.min(tl.where(scores == tile_peak, columns, NOWHERE), 0)
        scores = tl.where(scores >= lowest, scores, -float("inf")) / temperature
        at = tl.where(tile_peak > peak, tile_at, at)
        # A tile without any finite score leaves the sum at zero.
        new_peak = tl.maximum(peak, tile_peak)
        shift = tl.where(new_peak == -float("inf"), 0.0, new_peak) / temperature
        old = tl.where(peak == -float("inf"), 0.0, tl.exp(peak / temperature - shift))
        total = total * old + tl.sum(tl.exp(scores - shift), 0)
        peak = new_peak
    out = row.to(tl.int64) * groups + group
    tl.store(peak_ptr + out, peak)
    tl.store(at_ptr + out, at)
    tl.store(total_ptr + out, tl.where(strange > 0, float("nan"), total))


@triton.jit
def log_sum_exp(peak_ptr, total_ptr, row, groups, temperature, BLOCK: tl.constexpr):
    """Of a whole row; NaN where it is undefined or has nothing above -inf."""
    index = tl.arange(0, BLOCK)
    peaks = tl.load(peak_ptr + row * groups + index, mask=index < groups, other=-float("inf"))
    totals = tl.load(total_ptr + row * groups + index, mask=index < groups, other=0.0)
    peak = tl.max(peaks, 0)
    shift = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.sum(totals * tl.exp((peaks - shift) / temperature), 0)
    return tl.where(total > 0, shift / temperature + tl.log(total), float("nan"))


@triton.jit
def argmax_of(peak_ptr, total_ptr, at_ptr, row, groups, BLOCK: tl.constexpr):
    """Of a whole row, the lowest column of the largest; -1 where it is undefined."""
    index = tl.arange(0, BLOCK)
    peaks = tl.load(peak_ptr + row * groups + index, mask=index < groups, other=-float("inf"))
    totals = tl.load(total_ptr + row * groups + index, mask=index < groups, other=0.0)
    columns = tl.load(at_ptr + row * groups + index, mask=index < groups, other=NOWHERE)
    peak = tl.max(peaks, 0)
    defined = (tl.sum((totals != totals).to(tl.int32), 0) == 0) & (peak > -float("inf"))
    return tl.where(defined, tl.min(tl.where(peaks == peak, columns, NOWHERE), 0), -1).to(tl.int64)


@triton.jit
def _log_probability(logits_ptr, lowest_ptr, row, token, stride, temperature, lse):
    """Of one token; -inf where it was filtered out, NaN where the row is undefined."""
    score = tl.load(logits_ptr + row * stride + token).to(tl.float32)
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
):
    """log p(x) - log q(x); NaN for a placeholder or an undefined row."""
    inside = (token >= 0) & (token < vocab)
    safe = tl.where(inside, token, 0)
    log_p = _log_probability(target_ptr, target_lowest_ptr, row, safe, target_stride, temperature, target_lse)
    log_q = _log_probability(draft_ptr, draft_lowest_ptr, draft_row, safe, draft_stride, temperature, draft_lse)
    return tl.where(inside, log_p - log_q, float("nan"))
