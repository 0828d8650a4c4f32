"""Filter thresholds in Triton: a search over the order of floats instead of a sort, in two launches.

`filter_scan_kernel`, a program per row and 8192 columns, reads the row once and writes the maximum of every 64 columns,
a chunk. `filter_threshold_kernel`, a program per row, first looks at these maxima alone. The K-th largest of them is at
most the K-th largest entry. And chunks whose maxima already have top-p's share hold every id that top-p keeps. Only
chunks whose maximum reaches such a bound can decide: about K for top-k, as many as ids are kept for top-p.

Over these chunks runs the search. Floats are compared as integers that have the same order, cut to the bits of their
dtype. Each pass counts (top-k) or weighs (top-p) the entries at or above three candidates, which leaves a quarter of
the range. Sorting would read and write keys and indices many times, and a mask would be another row.

No program waits for another, and sums run in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.filter_threshold.fused_search import key_of, largest, mass_of, search, unlikely
from specdistill_kernels.fused_scan import request_of, setting_of
from specdistill_kernels.sampling_settings import KernelSettings

# 64 bfloat16 entries are a line of the cache.
CHUNK = 64
SCANNED, SCAN_THREADS = 8192, 256
# 8 entries a thread, 16 bytes of bfloat16.
BLOCK, THREADS = 4096, 512
_ORDER_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
_KEY_OF_MINUS_INFINITY = tl.constexpr(-2139095041)


@triton.jit
def _place(row, target_ptr, draft_ptr, cu_ptr, target_stride, draft_stride, targets, batch):
    """The request of a row, and where its logits begin. Target rows come first, then the drafts'."""
    if draft_ptr is None:
        request, _ = request_of(row, cu_ptr, batch, 1, 1024)
        return request, target_ptr + row.to(tl.int64) * target_stride
    else:
        drafted = row >= targets
        own = row - tl.where(drafted, targets, 0)
        request, _ = request_of(own, cu_ptr, batch, tl.where(drafted, 0, 1), 1024)
        # int64 before the multiplication: rows x vocabulary exceeds 2**31.
        wide = own.to(tl.int64)
        return request, tl.where(drafted, draft_ptr + wide * draft_stride, target_ptr + wide * target_stride)


@triton.jit
def filter_scan_kernel(
    target_ptr,
    draft_ptr,
    cu_ptr,
    temperature,
    top_k,
    top_p,
    min_p,
    highest_ptr,
    sums_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    batch,
    groups,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row's group of columns: maximum of each chunk, and maximum and sum of exponentials of all."""
    row, group = tl.program_id(0), tl.program_id(1)
    request, start_ptr = _place(row, target_ptr, draft_ptr, cu_ptr, target_stride, draft_stride, targets, batch)
    temperature = setting_of(temperature, request)
    filters = (setting_of(top_k, request) > 0) | (setting_of(top_p, request) < 1) | (setting_of(min_p, request) > 0)
    if filters & (temperature > 0):
        columns = group * BLOCK + tl.arange(0, BLOCK)
        scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        highest = tl.max(tl.reshape(scores, (BLOCK // CHUNK, CHUNK)), 1)
        out = row.to(tl.int64) * groups + group
        chunks = out * (BLOCK // CHUNK) + tl.arange(0, BLOCK // CHUNK)
        tl.store(highest_ptr + chunks, highest.to(highest_ptr.dtype.element_ty))
        peak = tl.max(highest, 0)
        shift = tl.where(peak == -float("inf"), 0.0, peak)
        tl.store(sums_ptr + 2 * out, peak)
        tl.store(sums_ptr + 2 * out + 1, tl.sum(tl.exp((scores - shift) / temperature), 0))


@triton.jit
def filter_threshold_kernel(
    target_ptr,
    draft_ptr,
    cu_ptr,
    temperature,
    top_k,
    top_p,
    min_p,
    highest_ptr,
    sums_ptr,
    chosen_ptr,
    out_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    batch,
    groups,
    SHIFT: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS_PER_GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row's threshold, from what the scan wrote."""
    row = tl.program_id(0)
    request, start_ptr = _place(row, target_ptr, draft_ptr, cu_ptr, target_stride, draft_stride, targets, batch)
    temperature = setting_of(temperature, request)
    top_k, top_p, min_p = setting_of(top_k, request), setting_of(top_p, request), setting_of(min_p, request)
    lowest = -float("inf")
    # Rows without filters were not scanned.
    if (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0)):
        chunks = groups * CHUNKS_PER_GROUP
        index = tl.arange(0, GROUPS * CHUNKS_PER_GROUP)
        start = row.to(tl.int64) * chunks
        highest = tl.load(highest_ptr + start + index, mask=index < chunks, other=-float("inf")).to(tl.float32)
        peak = tl.max(highest, 0)
        by_count, by_mass = (top_k > 0) & (top_k < vocab), top_p < 1
        if (by_count | by_mass) & (peak > -float("inf")):
            keys = key_of(highest) >> SHIFT
            # 64 bits: the width of the whole range of keys is no int32.
            least = (tl.full((), -2147483648, tl.int32) >> SHIFT).to(tl.int64)
            most = (key_of(peak) >> SHIFT).to(tl.int64)
            mass = 0.0
            if by_count:
                # Each of the K largest maxima is an entry, so there are K entries at or above the K-th of them.
                low = largest(keys, tl.where(index < chunks, 1.0, 0.0), least, most, top_k)
            else:
                group = tl.arange(0, GROUPS)
                own_sums_ptr = sums_ptr + 2 * groups * row.to(tl.int64)
                peaks = tl.load(own_sums_ptr + 2 * group, mask=group < groups, other=-float("inf"))
                totals = tl.load(own_sums_ptr + 2 * group + 1, mask=group < groups, other=0.0)
                mass = tl.sum(totals * tl.exp((peaks - peak) / temperature), 0)
                low = tl.minimum(unlikely(peak, temperature, mass, top_p, vocab, SHIFT), most)
                # The maxima are a part of the row: where theirs is enough, the row's is. The margin is for rounding.
                need = 1.00001 * top_p * mass
                low = largest(keys, tl.exp((highest - peak) / temperature), low, most, need)
            kept = (index < chunks) & (keys >= low.to(tl.int32))
            chosen = tl.sum(kept.to(tl.int32), 0)
            own_ptr = chosen_ptr + start
            tl.store(own_ptr + tl.cumsum(kept.to(tl.int32), 0) - 1, index.to(chosen_ptr.dtype.element_ty), mask=kept)
            # Other threads of this program read what was written.
            tl.debug_barrier()
            floor = least
            if by_count:
                floor = search(
                    start_ptr, own_ptr, chosen, vocab, peak, temperature, least, low, most, top_k, False,
                    SHIFT, CHUNK, BLOCK,
                )  # fmt: skip
            if by_mass:
                if by_count:
                    mass = mass_of(start_ptr, own_ptr, chosen, vocab, peak, temperature, floor, SHIFT, CHUNK, BLOCK)
                    low = tl.maximum(floor, unlikely(peak, temperature, mass, top_p, vocab, SHIFT))
                floor = search(
                    start_ptr, own_ptr, chosen, vocab, peak, temperature, floor, tl.minimum(low, most), most,
                    top_p * mass, True, SHIFT, CHUNK, BLOCK,
                )  # fmt: skip
            key = (floor << SHIFT).to(tl.int32)
            bits = tl.where(key < 0, key ^ 0x7FFFFFFF, key)
            # Keys below that of -inf are NaN's, which nothing could reach.
            lowest = tl.where(key > _KEY_OF_MINUS_INFINITY, bits.to(tl.float32, bitcast=True), -float("inf"))
        if min_p > 0:
            lowest = tl.maximum(lowest, peak + temperature * tl.log(min_p))
    tl.store(out_ptr + row, lowest)


def filter_threshold_fused(
    logits: Tensor, settings: KernelSettings, cu: Tensor | None = None, draft: Tensor | None = None
) -> Tensor:
    """Computes `filter_threshold` with the kernels.

    Args:
        logits: [rows, vocab].
        settings: One value per row, or per request where `cu` is given.
        cu: int [batch], the inclusive running sum of the requests' draft tokens. It assigns rows to requests, each of
            which has one more row of logits than draft tokens.
        draft: [draft tokens, vocab], logits with thresholds of their own.

    Returns:
        float32 [rows + draft tokens]: the logits' thresholds, then the draft's.
    """
    logits = unit_stride(logits)
    rows = logits.shape[0]
    out = torch.empty(rows + (0 if draft is None else draft.shape[0]), dtype=torch.float32, device=logits.device)
    if draft is None:
        _launch(logits, None, rows, settings, cu, out)
        return out
    draft = unit_stride(draft)
    if draft.dtype == logits.dtype:
        _launch(logits, draft, rows, settings, cu, out)
    else:
        _launch(logits, None, rows, settings, cu, out[:rows])
        _launch(draft, draft, 0, settings, cu, out[rows:])
    return out


def _launch(
    target: Tensor,
    draft: Tensor | None,
    targets: int,
    settings: KernelSettings,
    cu: Tensor | None,
    out: Tensor,
) -> None:
    """Launches both kernels for rows of one dtype: the first `targets` rows of target, then the draft's."""
    rows, vocab = out.shape[0], target.shape[1]
    if not rows:
        return
    groups = triton.cdiv(vocab, SCANNED)
    chunks = groups * (SCANNED // CHUNK)
    highest = torch.empty(rows, chunks, dtype=target.dtype, device=out.device)
    sums = torch.empty(rows, groups, 2, dtype=torch.float32, device=out.device)
    chosen = torch.empty(rows, chunks, dtype=torch.int16 if chunks < 2**15 else torch.int32, device=out.device)
    strides = (target.stride(0), target.stride(0) if draft is None else draft.stride(0))
    sizes = (targets, vocab, rows if cu is None else cu.shape[0], groups)
    filter_scan_kernel[(rows, groups)](
        target, draft, cu, *settings, highest, sums, *strides, *sizes,
        CHUNK=CHUNK, BLOCK=SCANNED, num_warps=warps_of(SCAN_THREADS),
    )  # fmt: skip
    filter_threshold_kernel[(rows,)](
        target, draft, cu, *settings, highest, sums, chosen, out, *strides, *sizes,
        SHIFT=32 - _ORDER_BITS[target.dtype], CHUNK=CHUNK, CHUNKS_PER_GROUP=SCANNED // CHUNK,
        GROUPS=triton.next_power_of_2(groups), BLOCK=BLOCK, num_warps=warps_of(THREADS),
    )  # fmt: skip
