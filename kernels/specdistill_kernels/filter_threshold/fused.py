"""Filter thresholds in Triton: a search over the order of floats instead of a sort.

One program per row. The first pass yields maximum and mass. Then the threshold is found two bits at a time, from the
highest down, in the integers that order like floats: each pass counts (top-k) or weighs (top-p) what lies at or above
three candidates. Passes over the row: 1 + 8 per filter for bfloat16 logits (whose order has 16 bits), 10 for float16,
16 for float32; after the first they come from cache. Sorting would read and write keys and indices many times over, and
a mask would be another row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.fused_scan import request_of
from specdistill_kernels.sampling_settings import SamplingSettings

BLOCK, THREADS = 4096, 512
_ORDER_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
_KEY_OF_MINUS_INFINITY = tl.constexpr(-2139095041)


@triton.jit
def _key(values):
    """int32 that orders like the float32 values."""
    # -0.0 and 0.0 are equal and must get one key.
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _search(
    start_ptr, vocab, peak, temperature, floor, need, BY_MASS: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key for which the entries at or above it, of those at or above `floor`, come to at least `need`."""
    found = tl.full((), -2147483648, tl.int64)
    for turn in range(0, BITS // 2):
        step = tl.full((), 1, tl.int64) << (30 - 2 * turn)
        first, second, third = found + step, found + 2 * step, found + 3 * step
        over_first = tl.zeros((BLOCK,), tl.float32)
        over_second = tl.zeros((BLOCK,), tl.float32)
        over_third = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
            keys = _key(scores)
            # Counts up to 2**24 are exact in float32, and a lane sees vocab / BLOCK entries only.
            worth = tl.where(columns < vocab, 1.0, 0.0)
            if BY_MASS:
                worth = tl.where(keys >= floor, tl.exp((scores - peak) / temperature), 0.0)
            over_first += tl.where(keys >= first.to(tl.int32), worth, 0.0)
            over_second += tl.where(keys >= second.to(tl.int32), worth, 0.0)
            over_third += tl.where(keys >= third.to(tl.int32), worth, 0.0)
        digit = (
            (tl.sum(over_first, 0) >= need).to(tl.int64)
            + (tl.sum(over_second, 0) >= need).to(tl.int64)
            + (tl.sum(over_third, 0) >= need).to(tl.int64)
        )
        found += digit * step
    return found.to(tl.int32)


@triton.jit
def filter_threshold_kernel(
    logits_ptr,
    cu_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    out_ptr,
    stride,
    vocab,
    batch,
    EXTRA: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row's threshold."""
    row = tl.program_id(0)
    request, _ = request_of(row, cu_ptr, batch, EXTRA, 1024)
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    start_ptr = logits_ptr + row.to(tl.int64) * stride
    temperature = tl.load(temperature_ptr + request)
    top_k, top_p, min_p = tl.load(top_k_ptr + request), tl.load(top_p_ptr + request), tl.load(min_p_ptr + request)
    highest = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, vocab, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        highest = tl.maximum(
            highest, tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        )
    peak = tl.max(highest, 0)

    floor = tl.full((), -2147483648, tl.int32)
    sampled = (temperature > 0) & (peak > -float("inf"))
    if sampled & (top_k > 0) & (top_k < vocab):
        floor = _search(start_ptr, vocab, peak, temperature, floor, top_k.to(tl.float32), False, BITS, BLOCK)
    if sampled & (top_p < 1):
        masses = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
            masses += tl.where(_key(scores) >= floor, tl.exp((scores - peak) / temperature), 0.0)
        need = top_p * tl.sum(masses, 0)
        by_mass = _search(start_ptr, vocab, peak, temperature, floor, need, True, BITS, BLOCK)
        floor = tl.maximum(floor, by_mass)
    bits = tl.where(floor < 0, floor ^ 0x7FFFFFFF, floor)
    # Keys below that of -inf are NaN's, which nothing could reach.
    lowest = tl.where(floor > _KEY_OF_MINUS_INFINITY, bits.to(tl.float32, bitcast=True), -float("inf"))
    if sampled & (min_p > 0):
        lowest = tl.maximum(lowest, peak + temperature * tl.log(min_p))
    tl.store(out_ptr + row, lowest)


def filter_threshold_fused(
    logits: Tensor,
    settings: SamplingSettings,
    cu: Tensor | None = None,
    extra: int = 0,
    block: int = BLOCK,
) -> Tensor:
    """See `filter_threshold`.

    Args:
        cu: With it, settings are per request: rows belong to requests by this running sum, plus `extra` rows each.
        block: Forced by tests to reach the multi-block path at small vocabularies.
    """
    logits = unit_stride(logits)
    out = torch.empty(logits.shape[0], dtype=torch.float32, device=logits.device)
    if logits.shape[0]:
        filter_threshold_kernel[(logits.shape[0],)](
            logits,
            cu,
            *settings,
            out,
            logits.stride(0),
            logits.shape[1],
            settings.temperature.shape[0],
            EXTRA=extra,
            BITS=_ORDER_BITS[logits.dtype],
            BLOCK=block,
            num_warps=warps_of(THREADS),
        )
    return out
