"""Sampling in Triton: one pass over the row, Gumbel noise computed in registers.

Each program takes 8192 columns of a row (four tiles, so that every Philox call's four words are used) and writes its
best score and column. A second, tiny kernel picks the best of a row's programs. The row is read once, 2 bytes per
vocabulary entry for bfloat16, and 8 bytes per 8192 columns are written. Filters come as a threshold
(`filter_threshold`), so no mask and no processed copy of the logits exists.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.filter_threshold.fused import filter_threshold_fused
from specdistill_kernels.fused_scan import NOWHERE, count_undefined, leftmost, request_of, setting_of
from specdistill_kernels.noise import GROUP, TILE
from specdistill_kernels.noise.fused import gumbel_group
from specdistill_kernels.sampling_settings import KernelSettings

THREADS = 256


@triton.jit
def _better(best, best_at, undefined, scores, noise, columns, temperature, lowest, GREEDY: tl.constexpr):
    """Updates the running best, its column and the count of undefined logits with a tile; the leftmost wins ties."""
    undefined += count_undefined(scores)
    if not GREEDY:
        noisy = tl.where(scores >= lowest, scores / temperature + noise, -float("inf"))
        scores = tl.where(temperature > 0, noisy, scores)
    best, best_at = leftmost(best, best_at, scores, columns)
    return best, best_at, undefined


@triton.jit
def sample_pick_kernel(
    logits_ptr,
    lowest_ptr,
    cu_ptr,
    seed_ptr,
    position_ptr,
    base_ptr,
    temperature,
    best_ptr,
    at_ptr,
    stride,
    vocab,
    batch,
    groups,
    STREAM: tl.constexpr,
    GREEDY: tl.constexpr,
    TILE: tl.constexpr,
):
    """Best score and column of one row's group of 4 TILE columns; -1 with score +inf where the group is undefined."""
    row, group = tl.program_id(0), tl.program_id(1)
    # int64 before the multiplication: rows x vocabulary exceeds 2**31.
    start_ptr = logits_ptr + row.to(tl.int64) * stride
    warmth, lowest = 1.0, -float("inf")
    first = group * (4 * TILE) + tl.arange(0, TILE)
    noise = (0.0, 0.0, 0.0, 0.0)
    if not GREEDY:
        request, offset = request_of(row, cu_ptr, batch, 1, 1024)
        warmth = setting_of(temperature, request)
        if lowest_ptr is not None:
            lowest = tl.load(lowest_ptr + row)
        base = tl.full((), 0, tl.int64)
        if base_ptr is not None:
            base = tl.load(base_ptr + request)
        noise = gumbel_group(
            tl.load(seed_ptr + request), tl.load(position_ptr + request) + offset, base, group, STREAM, TILE
        )
    best, at, undefined = -float("inf"), 0, 0
    for lane in tl.static_range(4):
        columns = first + lane * TILE
        scores = tl.load(start_ptr + columns, mask=columns < vocab, other=-float("inf")).to(tl.float32)
        best, at, undefined = _better(best, at, undefined, scores, noise[lane], columns, warmth, lowest, GREEDY)
    out = row.to(tl.int64) * groups + group
    tl.store(best_ptr + out, tl.where(undefined > 0, float("inf"), best))
    tl.store(at_ptr + out, tl.where(undefined > 0, -1, at))


@triton.jit
def token_of(best_ptr, at_ptr, row, groups, BLOCK: tl.constexpr):
    """A row's token from its groups: the leftmost best; -1 where a group is undefined or no token is possible."""
    index = tl.arange(0, BLOCK)
    scores = tl.load(best_ptr + row * groups + index, mask=index < groups, other=-float("inf"))
    columns = tl.load(at_ptr + row * groups + index, mask=index < groups, other=NOWHERE)
    peak = tl.max(scores, 0)
    token = tl.min(tl.where(scores == peak, columns, NOWHERE), 0)
    return tl.where(peak == -float("inf"), -1, token).to(tl.int64)


@triton.jit
def sample_combine_kernel(best_ptr, at_ptr, out_ptr, groups, BLOCK: tl.constexpr):
    """One row's token."""
    row = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + row, token_of(best_ptr, at_ptr, row, groups, BLOCK))


def pick(
    logits: Tensor,
    keys: Sequence[Tensor | None],
    stream: int,
    temperature: Tensor | float,
    lowest: Tensor | None,
    greedy: bool,
    cu: Tensor | None = None,
) -> tuple[Tensor, Tensor, int]:
    """Launches `sample_pick_kernel`; returns each group's best score and column, [rows, groups], and their number.

    Keys (seeds, positions, rounds) and temperature are per request where `cu` assigns rows to requests. Without rounds
    they are 0; seeds and positions may be None where all is greedy.
    """
    rows, vocab = logits.shape
    groups = triton.cdiv(vocab, GROUP)
    best = torch.empty(rows, groups, dtype=torch.float32, device=logits.device)
    at = torch.empty(rows, groups, dtype=torch.int32, device=logits.device)
    if rows:
        sample_pick_kernel[(rows, groups)](
            logits,
            lowest,
            cu,
            *keys,
            temperature,
            best,
            at,
            logits.stride(0),
            vocab,
            rows if cu is None else cu.shape[0],
            groups,
            STREAM=stream,
            GREEDY=greedy,
            TILE=TILE,
            num_warps=warps_of(THREADS),
        )
    return best, at, groups


def sample_fused(
    logits: Tensor, keys: Sequence[Tensor | None], stream: int, settings: KernelSettings, filtered: bool, greedy: bool
) -> Tensor:
    """Computes `sample` with the kernels.

    Args:
        logits: [rows, vocab].
        keys: Seeds, positions and rounds, each int64 [rows] or None, as in `pick`.
        stream: `noise.TARGET` or `noise.DRAFT`.
        settings: One value per row.
        filtered: Some setting can filter.
        greedy: Every temperature is 0.

    Returns:
        int64 [rows].
    """
    logits = unit_stride(logits)
    lowest = filter_threshold_fused(logits, settings) if filtered else None
    best, at, groups = pick(logits, keys, stream, settings.temperature, lowest, greedy)
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    if logits.shape[0]:
        sample_combine_kernel[(logits.shape[0],)](
            best, at, out, groups, BLOCK=triton.next_power_of_2(groups), num_warps=1
        )
    return out
