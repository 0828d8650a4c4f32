"""Row statistics for verification with draft probabilities, per 8192 columns, and functions that combine them.

Target rows come first in every array of statistics, and the drafts' rows follow: draft row i is number `targets + i`.
Functions take a block of rows at once, so that a request's positions wait for memory together and not one by one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.fused_scan import NOWHERE, count_undefined, leftmost, request_of, setting_of

POSITIONS = tl.constexpr(8)
"""Positions of a request that are judged together; most drafts are no longer."""


@triton.jit
def bounds(request, cu_ptr):
    """First draft row of a request and its number of draft tokens."""
    first = tl.load(cu_ptr + request - 1, mask=request > 0, other=0).to(tl.int64)
    return first, tl.load(cu_ptr + request).to(tl.int64) - first


@triton.jit
def warm_temperature(temperature, request):
    """A request's temperature, or 1 for a greedy one, whose probabilities are unused: 0 can't divide."""
    value = setting_of(temperature, request)
    return tl.where(value > 0, value, 1.0)


@triton.jit
def _group_statistics(start_ptr, group, lowest, temperature, vocab, TILE: tl.constexpr):
    """Maximum of a row's group of 4 TILE columns, its column, sum of exponentials, and the count of NaN and +inf."""
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
    return peak, at, total, undefined


@triton.jit
def verify_statistics_kernel(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    cu_ptr,
    temperature,
    peak_ptr,
    at_ptr,
    total_ptr,
    arrived_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    batch,
    groups,
    GIVEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """One row's group of columns: maximum, its column, sum of exponentials (NaN if a logit is NaN or +inf).

    Also sets the counters of `verify_resample_kernel` to 0.
    """
    row, group = tl.program_id(0), tl.program_id(1)
    drafted = row >= targets
    own = row - tl.where(drafted, targets, 0)
    request, _ = request_of(own, cu_ptr, batch, tl.where(drafted, 0, 1), 1024)
    warm = warm_temperature(temperature, request)
    lowest = -float("inf")
    if lowest_ptr is not None:
        if GIVEN:
            lowest = tl.load(lowest_ptr + row, mask=row < targets, other=-float("inf"))
        else:
            lowest = tl.load(lowest_ptr + row)
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    wide = own.to(tl.int64)
    if drafted:
        peak, at, total, undefined = _group_statistics(
            draft_ptr + wide * draft_stride, group, lowest, warm, vocab, TILE
        )
    else:
        peak, at, total, undefined = _group_statistics(
            target_ptr + wide * target_stride, group, lowest, warm, vocab, TILE
        )
    out = row.to(tl.int64) * groups + group
    tl.store(peak_ptr + out, peak)
    tl.store(at_ptr + out, at)
    tl.store(total_ptr + out, tl.where(undefined > 0, float("nan"), total))
    tl.store(arrived_ptr + row, 0, mask=(row < batch) & (group == 0))


@triton.jit
def groups_of(values_ptr, rows, groups, other, BLOCK: tl.constexpr):
    """Numbers of each row's groups, [rows, BLOCK]."""
    index = tl.arange(0, BLOCK)[None, :]
    return tl.load(values_ptr + rows[:, None] * groups + index, mask=index < groups, other=other)


@triton.jit
def log_sum_exps(peak_ptr, total_ptr, rows, groups, temperature, BLOCK: tl.constexpr):
    """Log-sum-exps of rows from their groups; NaN where a row is undefined or has nothing above -inf."""
    peaks = groups_of(peak_ptr, rows, groups, -float("inf"), BLOCK)
    totals = groups_of(total_ptr, rows, groups, 0.0, BLOCK)
    peak = tl.max(peaks, 1)
    shift = tl.where(peak == -float("inf"), 0.0, peak)
    total = tl.sum(totals * tl.exp((peaks - shift[:, None]) / temperature), 1)
    return tl.where(total > 0, shift / temperature + tl.log(total), float("nan"))


@triton.jit
def log_sum_exp(peak_ptr, total_ptr, row, groups, temperature, BLOCK: tl.constexpr):
    """`log_sum_exps` of one row."""
    return tl.sum(log_sum_exps(peak_ptr, total_ptr, tl.full((1,), row, tl.int64), groups, temperature, BLOCK), 0)


@triton.jit
def argmaxes(peak_ptr, at_ptr, total_ptr, rows, groups, BLOCK: tl.constexpr):
    """Argmaxes of rows from their groups, the lowest column on ties; -1 where a row is undefined."""
    peaks = groups_of(peak_ptr, rows, groups, -float("inf"), BLOCK)
    columns = groups_of(at_ptr, rows, groups, NOWHERE, BLOCK)
    totals = groups_of(total_ptr, rows, groups, 0.0, BLOCK)
    peak = tl.max(peaks, 1)
    token = tl.min(tl.where(peaks == peak[:, None], columns, NOWHERE), 1)
    undefined = (tl.sum((totals != totals).to(tl.int32), 1) > 0) | (peak == -float("inf"))
    return tl.where(undefined, -1, token).to(tl.int64)


@triton.jit
def probability(scores, lowest, temperature, lse, GIVEN: tl.constexpr):
    """Probabilities of a block of logits, 0 where they were filtered out. GIVEN: the scores are probabilities."""
    if GIVEN:
        return scores
    else:
        return tl.where(scores >= lowest, tl.exp(scores / temperature - lse), 0.0)


@triton.jit
def _log_probabilities(scores, lowest_ptr, rows, temperature, lse, GIVEN: tl.constexpr):
    """Log-probabilities of a token per row; -inf where it was filtered out, NaN where the row is undefined."""
    if GIVEN:
        return tl.where(lse == lse, tl.log(scores), lse)
    else:
        if lowest_ptr is not None:
            scores = tl.where(scores >= tl.load(lowest_ptr + rows), scores, -float("inf"))
        return scores / temperature - lse


@triton.jit
def log_ratios(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    peak_ptr,
    total_ptr,
    rows,
    draft_rows,
    tokens,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    temperature,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """log p(x) - log q(x) of a token per row; NaN for a placeholder or an undefined row."""
    inside = (tokens >= 0) & (tokens < vocab)
    safe = tl.where(inside, tokens, 0)
    target = tl.load(target_ptr + rows * target_stride + safe).to(tl.float32)
    draft = tl.load(draft_ptr + draft_rows * draft_stride + safe).to(tl.float32)
    others = targets + draft_rows
    target_lse = log_sum_exps(peak_ptr, total_ptr, rows, groups, temperature, BLOCK)
    draft_lse = log_sum_exps(peak_ptr, total_ptr, others, groups, temperature, BLOCK)
    log_p = _log_probabilities(target, lowest_ptr, rows, temperature, target_lse, False)
    log_q = _log_probabilities(draft, lowest_ptr, others, temperature, draft_lse, GIVEN)
    return tl.where(inside, log_p - log_q, float("nan"))
