"""The extra pass of block verification: each prefix's running weight, and the residual mass after it."""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.fused_scan import request_of
from specdistill_kernels.verify.fused_rows import bounds, log_ratio, log_sum_exp, probability, warm_temperature


@triton.jit
def verify_weights_kernel(
    target_ptr,
    draft_ptr,
    target_lowest_ptr,
    draft_lowest_ptr,
    target_peak_ptr,
    target_total_ptr,
    draft_peak_ptr,
    draft_total_ptr,
    token_ptr,
    cu_ptr,
    temperature_ptr,
    weight_ptr,
    target_stride,
    draft_stride,
    vocab,
    groups,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request: the running weights w_i of block verification, NaN from an undefined row or a placeholder on."""
    request = tl.program_id(0).to(tl.int64)
    first, drafted = bounds(request, cu_ptr)
    temperature = warm_temperature(temperature_ptr, request)
    weight = 1.0
    for index in range(0, drafted):
        draft_row = first + index
        row = draft_row + request
        ratio = log_ratio(
            target_ptr,
            draft_ptr,
            target_lowest_ptr,
            draft_lowest_ptr,
            log_sum_exp(target_peak_ptr, target_total_ptr, row, groups, temperature, BLOCK),
            log_sum_exp(draft_peak_ptr, draft_total_ptr, draft_row, groups, temperature, BLOCK),
            row,
            draft_row,
            tl.load(token_ptr + draft_row).to(tl.int64),
            target_stride,
            draft_stride,
            vocab,
            temperature,
            GIVEN,
        )
        weight = weight * tl.exp(ratio)
        # Written so that NaN stays.
        weight = tl.where(weight > 1, 1.0, weight)
        tl.store(weight_ptr + draft_row, weight)


@triton.jit
def verify_masses_kernel(
    target_ptr,
    draft_ptr,
    target_lowest_ptr,
    draft_lowest_ptr,
    target_peak_ptr,
    target_total_ptr,
    draft_peak_ptr,
    draft_total_ptr,
    cu_ptr,
    temperature_ptr,
    weight_ptr,
    mass_ptr,
    target_stride,
    draft_stride,
    vocab,
    batch,
    groups,
    GIVEN: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One draft row's group of columns: its part of sum (w p - q)+, where w is the weight of the tokens before it."""
    draft_row, group = tl.program_id(0), tl.program_id(1)
    request, offset = request_of(draft_row, cu_ptr, batch, 0, 1024)
    row = draft_row.to(tl.int64) + request
    temperature = warm_temperature(temperature_ptr, request)
    # The first row of a request has no token before it, so its mass is not needed.
    weight = tl.load(weight_ptr + draft_row - 1, mask=offset > 0, other=0.0)
    mass = 0.0
    # A weight of 0 or NaN has no mass, or none that is needed.
    if weight > 0:
        target_lse = log_sum_exp(target_peak_ptr, target_total_ptr, row, groups, temperature, BLOCK)
        draft_lse = log_sum_exp(draft_peak_ptr, draft_total_ptr, draft_row.to(tl.int64), groups, temperature, BLOCK)
        target_lowest, draft_lowest = -float("inf"), -float("inf")
        if target_lowest_ptr is not None:
            target_lowest = tl.load(target_lowest_ptr + row)
        if draft_lowest_ptr is not None:
            draft_lowest = tl.load(draft_lowest_ptr + draft_row)
        for lane in range(4):
            columns = (group * 4 + lane) * TILE + tl.arange(0, TILE)
            inside = columns < vocab
            target = tl.load(target_ptr + row * target_stride + columns, mask=inside, other=-float("inf"))
            # Beyond the vocabulary p is 0, and a q of 0 adds nothing to the mass.
            draft = tl.load(
                draft_ptr + draft_row.to(tl.int64) * draft_stride + columns,
                mask=inside,
                other=0.0 if GIVEN else -float("inf"),
            )
            target, draft = target.to(tl.float32), draft.to(tl.float32)
            p = probability(target, target_lowest, temperature, target_lse, False)
            q = probability(draft, draft_lowest, temperature, draft_lse, GIVEN)
            mass += tl.sum(tl.maximum(weight * p - q, 0.0), 0)
    tl.store(mass_ptr + draft_row.to(tl.int64) * groups + group, mass)


@triton.jit
def sum_of(mass_ptr, row, groups, BLOCK: tl.constexpr):
    """A row's residual mass from its groups."""
    index = tl.arange(0, BLOCK)
    return tl.sum(tl.load(mass_ptr + row * groups + index, mask=index < groups, other=0.0), 0)
