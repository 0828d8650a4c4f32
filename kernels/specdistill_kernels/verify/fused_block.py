"""The extra pass of block verification: each prefix's running weight, and the residual mass after it."""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.fused_scan import request_of
from specdistill_kernels.verify.fused_rows import (
    POSITIONS,
    bounds,
    groups_of,
    log_ratios,
    log_sum_exp,
    probability,
    warm_temperature,
)


@triton.jit
def _running_weights(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    peak_ptr,
    total_ptr,
    token_ptr,
    weight_ptr,
    request,
    first,
    last,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    temperature,
    GIVEN: tl.constexpr,
    STORED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The running weights w before and after position `last`, NaN from an undefined row or a placeholder on.

    STORED: all weights up to `last` are written.
    """
    before, weight = 1.0, 1.0
    for start in range(0, last + 1, POSITIONS):
        index = start + tl.arange(0, POSITIONS)
        draft_rows = first + tl.minimum(index, last)
        tokens = tl.load(token_ptr + draft_rows).to(tl.int64)
        ratios = log_ratios(
            target_ptr, draft_ptr, lowest_ptr, peak_ptr, total_ptr, draft_rows + request, draft_rows, tokens,
            target_stride, draft_stride, targets, vocab, groups, temperature, GIVEN, BLOCK,
        )  # fmt: skip
        for step in tl.static_range(POSITIONS):
            inside = start + step <= last
            following = weight * tl.exp(tl.sum(tl.where(index == start + step, ratios, 0.0), 0))
            # Written so that NaN stays.
            following = tl.where(following > 1, 1.0, following)
            before = tl.where(inside, weight, before)
            weight = tl.where(inside, following, weight)
            if STORED:
                tl.store(weight_ptr + first + start + step, weight, mask=inside)
    return before, weight


@triton.jit
def verify_weights_kernel(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    peak_ptr,
    total_ptr,
    token_ptr,
    weight_ptr,
    cu_ptr,
    temperature,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request: the running weights of block verification."""
    request = tl.program_id(0).to(tl.int64)
    first, drafted = bounds(request, cu_ptr)
    _running_weights(
        target_ptr, draft_ptr, lowest_ptr, peak_ptr, total_ptr, token_ptr, weight_ptr, request, first, drafted - 1,
        target_stride, draft_stride, targets, vocab, groups, warm_temperature(temperature, request), GIVEN, True, BLOCK,
    )  # fmt: skip


@triton.jit
def verify_masses_kernel(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    peak_ptr,
    total_ptr,
    token_ptr,
    weight_ptr,
    cu_ptr,
    temperature,
    mass_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    batch,
    WEIGHED: tl.constexpr,
    GIVEN: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One draft row's group of columns: its part of sum (w p - q)+, where w is the weight of the tokens before it.

    WEIGHED: `verify_weights_kernel` has written the weights. Otherwise each program goes through the prefix itself, and
    a row's first program writes its weight.
    """
    draft_row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    request, offset = request_of(draft_row, cu_ptr, batch, 0, 1024)
    row, other_row = draft_row + request, targets + draft_row
    warm = warm_temperature(temperature, request)
    if WEIGHED:
        weight = tl.load(weight_ptr + draft_row - 1, mask=offset > 0, other=0.0)
    else:
        weight, own = _running_weights(
            target_ptr, draft_ptr, lowest_ptr, peak_ptr, total_ptr, token_ptr, weight_ptr, request, draft_row - offset,
            offset, target_stride, draft_stride, targets, vocab, groups, warm, GIVEN, False, BLOCK,
        )  # fmt: skip
        tl.store(weight_ptr + draft_row, own, mask=group == 0)
    mass = 0.0
    # The first row of a request has no token before it, so its mass is not needed. A weight of 0 or NaN has no mass, or
    # none that is needed.
    if (offset > 0) & (weight > 0):
        target_lse = log_sum_exp(peak_ptr, total_ptr, row, groups, warm, BLOCK)
        draft_lse = log_sum_exp(peak_ptr, total_ptr, other_row, groups, warm, BLOCK)
        target_lowest, draft_lowest = -float("inf"), -float("inf")
        if lowest_ptr is not None:
            target_lowest = tl.load(lowest_ptr + row)
            if not GIVEN:
                draft_lowest = tl.load(lowest_ptr + other_row)
        for lane in range(4):
            columns = (group * 4 + lane) * TILE + tl.arange(0, TILE)
            inside = columns < vocab
            target = tl.load(target_ptr + row * target_stride + columns, mask=inside, other=-float("inf"))
            # Beyond the vocabulary p is 0, and a q of 0 adds nothing to the mass.
            draft = tl.load(
                draft_ptr + draft_row * draft_stride + columns, mask=inside, other=0.0 if GIVEN else -float("inf")
            )
            target, draft = target.to(tl.float32), draft.to(tl.float32)
            p = probability(target, target_lowest, warm, target_lse, False)
            q = probability(draft, draft_lowest, warm, draft_lse, GIVEN)
            mass += tl.sum(tl.maximum(weight * p - q, 0.0), 0)
    tl.store(mass_ptr + draft_row * groups + group, mass)


@triton.jit
def masses_of(mass_ptr, rows, groups, BLOCK: tl.constexpr):
    """Residual masses of rows from their groups."""
    return tl.sum(groups_of(mass_ptr, rows, groups, 0.0, BLOCK), 1)
