"""Filter thresholds in Triton: a search over the order of floats instead of a sort.

One program per row. Floats are compared as integers that have the same order, cut to the bits of their dtype. The
first pass finds the maximum of every lane of the program. Two bounds follow. The K-th largest of the lanes' maxima is
at most the K-th largest entry. And ids so unlikely that all of them together weigh less than top-p may leave out can't
decide.

Between those bounds each pass counts (top-k) or weighs (top-p) the entries at or above three candidates, which leaves a
quarter of the range. bfloat16 takes about 2 passes for top-k and 3 more for top-p; float32 takes up to 8 more. After
the first pass the rows come from cache. Sorting would read and write keys and indices many times, and a mask would be
another row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.fused_scan import request_of
from specdistill_kernels.sampling_settings import SamplingSettings

# 8 entries a thread, 16 bytes of bfloat16; on an H100 the fastest of five from 5 rows of 151936 ids to 1280.
BLOCK, THREADS = 8192, 1024
_ORDER_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
_KEY_OF_MINUS_INFINITY = tl.constexpr(-2139095041)


@triton.jit
def _key(values):
    """int32 keys in the order of the float32 values."""
    # -0.0 and 0.0 are equal and must get one key.
    bits = (values + 0.0).to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


@triton.jit
def _narrowed(low, high, first, second, third, over_first, over_second, over_third, need):
    """The quarter of [low, high] that holds the largest key of which there is enough."""
    enough_first, enough_second, enough_third = over_first >= need, over_second >= need, over_third >= need
    new_low = tl.where(enough_third, third, tl.where(enough_second, second, tl.where(enough_first, first, low)))
    new_high = tl.where(enough_third, high, tl.where(enough_second, third, tl.where(enough_first, second, first)) - 1)
    return new_low, new_high


@triton.jit
def _candidates(low, high):
    """Three keys that cut [low, high] into quarters."""
    step = (high - low + 3) // 4
    return low + step, tl.minimum(low + 2 * step, high), tl.minimum(low + 3 * step, high)


@triton.jit
def _search(
    start_ptr, vocab, peak, temperature, floor, low, high, need, BY_MASS: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key in [low, high] for which the entries at or above it come to `need`; at low they must.

    BY_MASS: an entry counts its softmax weight, or 0 below `floor`. Otherwise it counts 1.
    """
    while low < high:
        first, second, third = _candidates(low, high)
        over_first = tl.zeros((BLOCK,), tl.float32)
        over_second = tl.zeros((BLOCK,), tl.float32)
        over_third = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
            keys = _key(scores) >> SHIFT
            # Counts up to 2**24 are exact in float32, and a lane sees vocab / BLOCK entries only.
            worth = tl.where(columns < vocab, 1.0, 0.0)
            if BY_MASS:
                worth = tl.where(keys >= floor.to(tl.int32), tl.exp((scores - peak) / temperature), 0.0)
            over_first += tl.where(keys >= first.to(tl.int32), worth, 0.0)
            over_second += tl.where(keys >= second.to(tl.int32), worth, 0.0)
            over_third += tl.where(keys >= third.to(tl.int32), worth, 0.0)
        low, high = _narrowed(
            low, high, first, second, third, tl.sum(over_first, 0), tl.sum(over_second, 0), tl.sum(over_third, 0), need
        )
    return low


@triton.jit
def _kth_of_lanes(keys, low, high, need):
    """The need-th largest key of a block, or low where there are fewer keys."""
    while low < high:
        first, second, third = _candidates(low, high)
        over_first = tl.sum((keys >= first.to(tl.int32)).to(tl.int32), 0)
        over_second = tl.sum((keys >= second.to(tl.int32)).to(tl.int32), 0)
        over_third = tl.sum((keys >= third.to(tl.int32)).to(tl.int32), 0)
        low, high = _narrowed(low, high, first, second, third, over_first, over_second, over_third, need)
    return low


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
    SHIFT: tl.constexpr,
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

    # 64 bits: the width of the whole range of keys is no int32.
    least = (tl.full((), -2147483648, tl.int32) >> SHIFT).to(tl.int64)
    most = (_key(peak) >> SHIFT).to(tl.int64)
    floor = least
    sampled = (temperature > 0) & (peak > -float("inf"))
    if sampled & (top_k > 0) & (top_k < vocab):
        # Each of the lanes' K largest maxima is an entry, so there are K entries at or above the K-th of them.
        floor = _kth_of_lanes(_key(highest) >> SHIFT, least, most, top_k)
        floor = _search(
            start_ptr, vocab, peak, temperature, least, floor, most, top_k.to(tl.float32), False, SHIFT, BLOCK
        )
    if sampled & (top_p < 1):
        masses = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, vocab, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
            masses += tl.where(
                (_key(scores) >> SHIFT) >= floor.to(tl.int32), tl.exp((scores - peak) / temperature), 0.0
            )
        mass = tl.sum(masses, 0)
        # Ids less likely than half of (1 - top_p) / vocab weigh less than 1 - top_p together: the rest is enough.
        bound = peak + temperature * (tl.log(mass) + tl.log((1 - top_p) / (2.0 * vocab)))
        low = tl.maximum(floor, (_key(bound) >> SHIFT).to(tl.int64))
        floor = _search(
            start_ptr, vocab, peak, temperature, floor, tl.minimum(low, most), most, top_p * mass, True, SHIFT, BLOCK
        )
    key = (floor << SHIFT).to(tl.int32)
    bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
    # Keys below that of -inf are NaN's, which nothing could reach.
    lowest = tl.where(key > _KEY_OF_MINUS_INFINITY, bits.to(tl.float32, bitcast=True), -float("inf"))
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
    """Computes `filter_threshold` with the kernel.

    Args:
        logits: [rows, vocab].
        settings: One value per row, or per request where `cu` is given.
        cu: int [batch], the inclusive running sum of the requests' draft tokens. It assigns rows to requests.
        extra: Rows that a request has beyond its draft tokens: 1 for target rows, 0 for draft rows.
        block: Columns per step of a row.

    Returns:
        float32 [rows].
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
            SHIFT=32 - _ORDER_BITS[logits.dtype],
            BLOCK=block,
            num_warps=warps_of(THREADS),
        )
    return out
