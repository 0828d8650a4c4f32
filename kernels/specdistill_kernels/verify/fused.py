"""Verification in Triton, on the flat rows that engines hold; no probability, mask or noise is written.

One-hot drafts: `sample_pick_kernel` draws the target's own token of every row in one pass, 2 bytes per vocabulary entry
for bfloat16. `verify_points_kernel` (one small program per request) compares these tokens with the draft's.

Drafts with probabilities: `verify_statistics_kernel` reads target and draft rows once and writes log-sum-exps per 8192
columns. `verify_resample_kernel` goes through each request's draft with a coin per position, reads the one row that was
rejected (or the bonus row) and draws from (a p - b q)+ by Gumbel-max. Block verification adds a pass for the residual
masses between the two. Filters are thresholds, computed beforehand.

**Few requests** take two launches. Each program of a request comes to its decision by itself, from the same numbers in
the same order, so all agree. The last one to finish picks the best of all; which one that is can't matter, since it
reads what all have written. A single launch would need counters that are kept from call to call, or set by a launch
before it, and programs that wait for others. Here the first launch sets them, nothing is kept and no program waits.

**Many requests.** The decision has a launch of its own (`verify_decide_kernel`, for `block` `verify_weights_kernel` as
well): repeating it once per 8192 columns would cost more than a launch.

Memory: a few numbers per row and 8192 columns, one weight per draft token; with filters two numbers per 64 columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.filter_threshold.fused import filter_threshold_fused
from specdistill_kernels.fused_scan import leftmost, setting_of
from specdistill_kernels.noise import GROUP, TARGET, TILE
from specdistill_kernels.noise.fused import TARGET as TARGET_STREAM
from specdistill_kernels.noise.fused import gumbel_group
from specdistill_kernels.sample.fused import pick, token_of
from specdistill_kernels.sampling_settings import KernelSettings
from specdistill_kernels.verify.fused_block import verify_masses_kernel, verify_weights_kernel
from specdistill_kernels.verify.fused_decision import decide, verify_decide_kernel
from specdistill_kernels.verify.fused_rows import (
    bounds,
    log_sum_exp,
    probability,
    verify_statistics_kernel,
    warm_temperature,
)
from specdistill_kernels.verify.reference import Verified

THREADS, DECISION_THREADS = 256, 128
REPEATED_DECISIONS = 256
"""Programs that draw the next tokens, at most, for each to decide by itself: so many fit on a large GPU at once (two on
a multiprocessor, by registers), and their decisions take no longer than one. More would wait and decide in turn."""


@triton.jit
def verify_points_kernel(best_ptr, at_ptr, draft_ptr, cu_ptr, accepted_ptr, next_ptr, groups, BLOCK: tl.constexpr):
    """One request: keeps draft tokens as long as they equal the target's own."""
    request = tl.program_id(0).to(tl.int64)
    first, drafted = bounds(request, cu_ptr)
    row = first + request
    token = token_of(best_ptr, at_ptr, row, groups, BLOCK)
    kept = tl.full((), 0, tl.int64)
    going = drafted > 0
    while going:
        proposed = tl.load(draft_ptr + first + kept).to(tl.int64)
        # An undefined row gives -1, and so does a placeholder.
        if (proposed == token) & (token >= 0):
            kept += 1
            token = token_of(best_ptr, at_ptr, row + kept, groups, BLOCK)
            going = kept < drafted
        else:
            going = False
    tl.store(accepted_ptr + request, kept)
    tl.store(next_ptr + request, token)


@triton.jit
def verify_resample_kernel(
    target_ptr,
    draft_ptr,
    lowest_ptr,
    peak_ptr,
    at_ptr,
    total_ptr,
    token_ptr,
    weight_ptr,
    mass_ptr,
    cu_ptr,
    temperature_setting,
    seed_ptr,
    position_ptr,
    accepted_ptr,
    shares_ptr,
    best_ptr,
    best_at_ptr,
    arrived_ptr,
    next_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    lenience,
    GIVEN: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request's group of columns: best Gumbel score under (a p - b q)+, and under p itself, of the deciding row.

    best and best_at are [batch, 2, groups]: the residual's, then the target's own, for residuals that vanish. The
    request's last program to finish writes the next token. Without shares each program decides by itself.
    """
    request, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if shares_ptr is not None:
        kept = tl.load(accepted_ptr + request)
        p_share, q_share = tl.load(shares_ptr + 2 * request), tl.load(shares_ptr + 2 * request + 1)
    else:
        kept, p_share, q_share = decide(
            target_ptr, draft_ptr, lowest_ptr, peak_ptr, at_ptr, total_ptr, token_ptr, weight_ptr, mass_ptr, cu_ptr,
            temperature_setting, seed_ptr, position_ptr, request, target_stride, draft_stride, targets, vocab, groups,
            lenience, GIVEN, BLOCK,
        )  # fmt: skip
        tl.store(accepted_ptr + request, kept, mask=group == 0)
    first, drafted = bounds(request, cu_ptr)
    greedy = setting_of(temperature_setting, request) == 0
    warm = warm_temperature(temperature_setting, request)
    row = first + kept + request
    # After the last draft token there is no draft row. Its share is then 0, so the row that is read has no effect.
    draft_row = tl.minimum(first + kept, first + tl.maximum(drafted - 1, 0))
    target_lse = log_sum_exp(peak_ptr, total_ptr, row, groups, warm, BLOCK)
    draft_lse = 0.0
    target_lowest, draft_lowest = -float("inf"), -float("inf")
    if lowest_ptr is not None:
        target_lowest = tl.load(lowest_ptr + row)
    if q_share > 0:
        draft_lse = log_sum_exp(peak_ptr, total_ptr, targets + draft_row, groups, warm, BLOCK)
        if lowest_ptr is not None and not GIVEN:
            draft_lowest = tl.load(lowest_ptr + targets + draft_row)
    noise = gumbel_group(
        tl.load(seed_ptr + request),
        tl.load(position_ptr + request) + kept,
        tl.full((), 0, tl.int64),
        group,
        TARGET_STREAM,
        TILE,
    )
    draft_vocab = tl.where(q_share > 0, vocab, 0)
    best, at, own_best, own_at = -float("inf"), 0, -float("inf"), 0
    for lane in tl.static_range(4):
        columns = (group * 4 + lane) * TILE + tl.arange(0, TILE)
        inside = columns < vocab
        target = tl.load(target_ptr + row * target_stride + columns, mask=inside, other=-float("inf")).to(tl.float32)
        own = tl.where(target >= target_lowest, target / warm + noise[lane], -float("inf"))
        own = tl.where(greedy, target, own)
        own_best, own_at = leftmost(own_best, own_at, own, columns)
        draft = tl.load(
            draft_ptr + draft_row * draft_stride + columns,
            mask=columns < draft_vocab,
            other=0.0 if GIVEN else -float("inf"),
        ).to(tl.float32)
        residual = p_share * probability(target, target_lowest, warm, target_lse, False)
        residual -= q_share * probability(draft, draft_lowest, warm, draft_lse, GIVEN)
        scores = tl.where(residual > 0, tl.log(residual) + noise[lane], -float("inf"))
        best, at = leftmost(best, at, scores, columns)
    # An undefined target row has a NaN log-sum-exp, and so has an undefined draft row that is needed.
    undefined = (target_lse != target_lse) | (draft_lse != draft_lse)
    plain = q_share == 0
    own_row = 2 * request + 1
    out = 2 * request * groups + group
    tl.store(best_ptr + out, tl.where(undefined, float("inf"), tl.where(plain, own_best, best)))
    tl.store(best_at_ptr + out, tl.where(undefined, -1, tl.where(plain, own_at, at)))
    tl.store(best_ptr + own_row * groups + group, own_best)
    tl.store(best_at_ptr + own_row * groups + group, own_at)
    # Counting releases what was stored; the last program acquires what all have stored.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr + request, 1, sem="acq_rel", scope="gpu")
    if arrived == groups - 1:
        token = token_of(best_ptr, best_at_ptr, 2 * request, groups, BLOCK)
        index = tl.arange(0, BLOCK)
        bests = tl.load(best_ptr + 2 * request * groups + index, mask=index < groups, other=-float("inf"))
        if tl.max(bests, 0) == -float("inf"):
            # The residual vanished by rounding.
            token = token_of(best_ptr, best_at_ptr, own_row, groups, BLOCK)
        tl.store(next_ptr + request, token)


def verify_fused(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    cu: Tensor,
    draft_logits: Tensor | None,
    rule: str,
    keys: Sequence[Tensor | None],
    settings: KernelSettings,
    filtered: bool,
    lenience: float,
    given: bool,
) -> Verified:
    """Computes `verify` with the kernels.

    Args:
        target_logits, draft_token_ids, cu, draft_logits, rule: As in `verify`.
        keys: Seeds and positions, each int64 [batch]; `greedy` needs none.
        settings: One value per request.
        filtered: Some setting can filter.
        lenience: 1 for every rule but `lenient`.
        given: draft_logits are probabilities.
    """
    batch, device = cu.shape[0], target_logits.device
    cu, draft_token_ids = cu.contiguous(), draft_token_ids.contiguous()
    target = unit_stride(target_logits)
    verified = Verified(*(torch.empty(batch, dtype=torch.int64, device=device) for _ in range(2)))
    if not batch:
        return verified
    if rule in ("greedy", "argmax_draft"):
        lowest = filter_threshold_fused(target, settings, cu) if filtered else None
        best, at, groups = pick(target, [*keys, None], TARGET, settings.temperature, lowest, rule == "greedy", cu)
        verify_points_kernel[(batch,)](
            best, at, draft_token_ids, cu, *verified, groups, BLOCK=triton.next_power_of_2(groups), num_warps=1
        )
        return verified
    assert draft_logits is not None, "checked by verify"
    draft = unit_stride(draft_logits)
    targets, vocab = target.shape
    rows, drafted, groups = targets + draft.shape[0], draft.shape[0], triton.cdiv(vocab, GROUP)
    lowest = filter_threshold_fused(target, settings, cu, None if given else draft) if filtered else None
    peak, total = (torch.empty(rows, groups, dtype=torch.float32, device=device) for _ in range(2))
    at = torch.empty(rows, groups, dtype=torch.int32, device=device)
    arrived = torch.empty(batch, dtype=torch.int32, device=device)
    temperature, strides = settings.temperature, (target.stride(0), draft.stride(0), targets, vocab)
    block, warps = triton.next_power_of_2(groups), warps_of(THREADS)
    verify_statistics_kernel[(rows, groups)](
        target, draft, lowest, cu, temperature, peak, at, total, arrived, *strides, batch, groups,
        GIVEN=given, TILE=TILE, num_warps=warps,
    )  # fmt: skip
    repeated = batch * groups <= REPEATED_DECISIONS
    weight = mass = shares = None
    if rule == "block" and drafted:
        weight = torch.empty(drafted, dtype=torch.float32, device=device)
        mass = torch.empty(drafted, groups, dtype=torch.float32, device=device)
        statistics = (target, draft, lowest, peak, total, draft_token_ids, weight, cu, temperature)
        if not repeated:
            verify_weights_kernel[(batch,)](
                *statistics, *strides, groups, GIVEN=given, BLOCK=block, num_warps=warps_of(DECISION_THREADS)
            )
        verify_masses_kernel[(drafted, groups)](
            *statistics, mass, *strides, groups, batch,
            WEIGHED=not repeated, GIVEN=given, TILE=TILE, BLOCK=block, num_warps=warps,
        )  # fmt: skip
    inputs = (target, draft, lowest, peak, at, total, draft_token_ids, weight, mass, cu, temperature, *keys)
    accepted, following = verified
    if not repeated:
        shares = torch.empty(batch, 2, dtype=torch.float32, device=device)
        verify_decide_kernel[(batch,)](
            *inputs, accepted, shares, *strides, groups, lenience,
            GIVEN=given, BLOCK=block, num_warps=warps_of(DECISION_THREADS),
        )  # fmt: skip
    best = torch.empty(batch, 2, groups, dtype=torch.float32, device=device)
    best_at = torch.empty(batch, 2, groups, dtype=torch.int32, device=device)
    verify_resample_kernel[(batch, groups)](
        *inputs, accepted, shares, best, best_at, arrived, following, *strides, groups, lenience,
        GIVEN=given, TILE=TILE, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return verified
