"""Verification in Triton, on the flat rows that engines hold; no probability, mask or noise is written.

One-hot drafts: `sample_pick_kernel` draws the target's own token of every row in one pass, 2 bytes per vocabulary entry
for bfloat16. `verify_points_kernel` (one small program per request) compares these tokens with the draft's.

Drafts with probabilities: `verify_statistics_kernel` reads target and draft rows once and writes log-sum-exps per 8192
columns. `verify_decide_kernel` goes through each request's draft with a coin per position. `verify_resample_kernel`
reads the one row that was rejected (or the bonus row) and draws from (a p - b q)+ by Gumbel-max. Block verification
adds a pass for the residual masses between the first two. Filters are thresholds, computed beforehand.

Memory: a few numbers per row and 8192 columns, and one weight per draft token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from specdistill_kernels.backend import unit_stride, warps_of
from specdistill_kernels.filter_threshold.fused import filter_threshold_fused
from specdistill_kernels.fused_scan import leftmost
from specdistill_kernels.noise import GROUP, TARGET, TILE
from specdistill_kernels.noise.fused import TARGET as TARGET_STREAM
from specdistill_kernels.noise.fused import coin, gumbel_group
from specdistill_kernels.sample.fused import pick, token_of
from specdistill_kernels.sampling_settings import SamplingSettings
from specdistill_kernels.verify.fused_block import sum_of, verify_masses_kernel, verify_weights_kernel
from specdistill_kernels.verify.fused_rows import (
    argmax_of,
    bounds,
    log_ratio,
    log_sum_exp,
    probability,
    verify_statistics_kernel,
    warm_temperature,
)
from specdistill_kernels.verify.reference import Verified

THREADS = 256


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
def verify_decide_kernel(
    target_ptr,
    draft_ptr,
    target_lowest_ptr,
    draft_lowest_ptr,
    target_peak_ptr,
    target_total_ptr,
    target_at_ptr,
    draft_peak_ptr,
    draft_total_ptr,
    token_ptr,
    cu_ptr,
    temperature_ptr,
    seed_ptr,
    position_ptr,
    weight_ptr,
    mass_ptr,
    accepted_ptr,
    shares_ptr,
    target_stride,
    draft_stride,
    vocab,
    batch,
    groups,
    lenience,
    GIVEN: tl.constexpr,
    BY_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request: how many draft tokens stay, and the weights a and b of the next token's law (a p - b q)+.

    shares is float32 [2, batch]: a, then b.
    """
    request = tl.program_id(0).to(tl.int64)
    first, drafted = bounds(request, cu_ptr)
    temperature, seed, base = (
        tl.load(temperature_ptr + request),
        tl.load(seed_ptr + request),
        tl.load(position_ptr + request),
    )
    greedy = temperature == 0
    warm = warm_temperature(temperature_ptr, request)
    kept = tl.full((), 0, tl.int64)
    p_share, weight = 1.0, 1.0
    index = tl.full((), 0, tl.int64)
    going = drafted > 0
    while going:
        draft_row = first + index
        row = draft_row + request
        token = tl.load(token_ptr + draft_row).to(tl.int64)
        if greedy:
            own = argmax_of(target_peak_ptr, target_total_ptr, target_at_ptr, row, groups, BLOCK)
            going = (token == own) & (own >= 0)
            kept += going.to(tl.int64)
        elif BY_BLOCK:
            weight = tl.load(weight_ptr + draft_row)
            chance = weight
            if index + 1 < drafted:
                mass = sum_of(mass_ptr, draft_row + 1, groups, BLOCK)
                # Both vanish only when the prefix is certain and the laws ahead agree.
                spoken = mass + 1 - weight
                chance = tl.where(spoken > 0, mass / spoken, 1.0)
            # NaN: nothing from this token on can be judged.
            going = weight == weight
            if going & (coin(seed, base + index, base) < chance):
                kept = index + 1
                p_share = weight
        else:
            ratio = log_ratio(
                target_ptr,
                draft_ptr,
                target_lowest_ptr,
                draft_lowest_ptr,
                log_sum_exp(target_peak_ptr, target_total_ptr, row, groups, warm, BLOCK),
                log_sum_exp(draft_peak_ptr, draft_total_ptr, draft_row, groups, warm, BLOCK),
                row,
                draft_row,
                token,
                target_stride,
                draft_stride,
                vocab,
                warm,
                GIVEN,
            )
            # exp(0) is 1 and the coin is below it: an identical draft is never rejected.
            going = coin(seed, base + index, base) < tl.exp(ratio) / lenience
            kept += going.to(tl.int64)
        index += 1
        going = going & (index < drafted)
    q_share = 0.0
    if (kept < drafted) & (temperature > 0):
        token = tl.load(token_ptr + first + kept).to(tl.int64)
        # A placeholder proposed nothing, so nothing is to be taken from the target's law.
        q_share = tl.where((token >= 0) & (token < vocab), lenience, 0.0)
    tl.store(accepted_ptr + request, kept)
    tl.store(shares_ptr + request, p_share)
    tl.store(shares_ptr + batch + request, q_share)


@triton.jit
def verify_resample_kernel(
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
    seed_ptr,
    position_ptr,
    accepted_ptr,
    shares_ptr,
    best_ptr,
    at_ptr,
    target_stride,
    draft_stride,
    vocab,
    batch,
    groups,
    GIVEN: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request's group of columns: best Gumbel score under (a p - b q)+, and under p itself, of the deciding row.

    best and at are [2, batch, groups]: the residual's first, then the target's own, for residuals that vanish.
    """
    request, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    first, drafted = bounds(request, cu_ptr)
    kept = tl.load(accepted_ptr + request)
    p_share, q_share = tl.load(shares_ptr + request), tl.load(shares_ptr + batch + request)
    temperature = tl.load(temperature_ptr + request)
    greedy = temperature == 0
    warm = warm_temperature(temperature_ptr, request)
    row = first + kept + request
    # After the last draft token there is no draft row. Its share is then 0, so the row that is read has no effect.
    draft_row = tl.minimum(first + kept, first + tl.maximum(drafted - 1, 0))
    target_lse = log_sum_exp(target_peak_ptr, target_total_ptr, row, groups, warm, BLOCK)
    draft_lse = 0.0
    target_lowest, draft_lowest = -float("inf"), -float("inf")
    if target_lowest_ptr is not None:
        target_lowest = tl.load(target_lowest_ptr + row)
    if q_share > 0:
        draft_lse = log_sum_exp(draft_peak_ptr, draft_total_ptr, draft_row, groups, warm, BLOCK)
        if draft_lowest_ptr is not None:
            draft_lowest = tl.load(draft_lowest_ptr + draft_row)
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
    out = request * groups + group
    # Not batch.to(): for one request Triton takes it as a plain number.
    other = tl.num_programs(0).to(tl.int64) * groups + out
    tl.store(best_ptr + out, tl.where(undefined, float("inf"), tl.where(plain, own_best, best)))
    tl.store(at_ptr + out, tl.where(undefined, -1, tl.where(plain, own_at, at)))
    tl.store(best_ptr + other, own_best)
    tl.store(at_ptr + other, own_at)


@triton.jit
def verify_combine_kernel(best_ptr, at_ptr, next_ptr, batch, groups, BLOCK: tl.constexpr):
    """One request's next token: the residual's best, or the target's own where the residual vanished by rounding."""
    request = tl.program_id(0).to(tl.int64)
    token = token_of(best_ptr, at_ptr, request, groups, BLOCK)
    index = tl.arange(0, BLOCK)
    scores = tl.load(best_ptr + request * groups + index, mask=index < groups, other=-float("inf"))
    if tl.max(scores, 0) == -float("inf"):
        token = token_of(best_ptr, at_ptr, tl.num_programs(0).to(tl.int64) + request, groups, BLOCK)
    tl.store(next_ptr + request, token)


def verify_fused(
    target_logits: Tensor,
    draft_token_ids: Tensor,
    cu: Tensor,
    draft_logits: Tensor | None,
    rule: str,
    keys: Sequence[Tensor],
    settings: SamplingSettings,
    lenience: float,
    filtered: bool,
    given: bool,
) -> Verified:
    """Computes `verify` with the kernels.

    Args:
        target_logits, draft_token_ids, cu, draft_logits, rule: As in `verify`.
        keys: Seeds and positions, each int64 [batch].
        settings: One value per request.
        lenience: 1 for every rule but `lenient`.
        filtered: Some setting can filter.
        given: draft_logits are probabilities.
    """
    batch, device = cu.shape[0], target_logits.device
    cu, draft_token_ids = cu.contiguous(), draft_token_ids.contiguous()
    target = unit_stride(target_logits)
    accepted = torch.empty(batch, dtype=torch.int64, device=device)
    following = torch.empty_like(accepted)
    if not batch:
        return Verified(accepted, following)
    lowest = filter_threshold_fused(target, settings, cu=cu, extra=1) if filtered else None
    if rule in ("greedy", "argmax_draft"):
        best, at, groups = pick(target, [*keys, keys[0]], TARGET, settings.temperature, lowest, rule == "greedy", cu)
        verify_points_kernel[(batch,)](
            best,
            at,
            draft_token_ids,
            cu,
            accepted,
            following,
            groups,
            BLOCK=triton.next_power_of_2(groups),
            num_warps=1,
        )
        return Verified(accepted, following)
    assert draft_logits is not None, "checked by verify"
    draft = unit_stride(draft_logits)
    draft_lowest = filter_threshold_fused(draft, settings, cu=cu) if filtered and not given else None
    vocab = target.shape[1]
    groups = triton.cdiv(vocab, GROUP)
    block, warps, temperature = triton.next_power_of_2(groups), warps_of(THREADS), settings.temperature

    def statistics(logits: Tensor, thresholds: Tensor | None, extra: int) -> tuple[Tensor, Tensor, Tensor]:
        peak, total = torch.empty(2, logits.shape[0], groups, dtype=torch.float32, device=device)
        columns = torch.empty(logits.shape[0], groups, dtype=torch.int32, device=device)
        if logits.shape[0]:
            verify_statistics_kernel[(logits.shape[0], groups)](
                logits, thresholds, cu, temperature, peak, total, columns, logits.stride(0), vocab, batch, groups,
                EXTRA=extra, TILE=TILE, num_warps=warps,
            )  # fmt: skip
        return peak, total, columns

    target_peak, target_total, target_at = statistics(target, lowest, 1)
    draft_peak, draft_total, _ = statistics(draft, draft_lowest, 0)
    rows = (target, draft, lowest, draft_lowest)
    sums = (target_peak, target_total, draft_peak, draft_total)
    strides = (target.stride(0), draft.stride(0), vocab)
    weight = mass = None
    if rule == "block" and draft.shape[0]:
        weight = torch.empty(draft.shape[0], dtype=torch.float32, device=device)
        mass = torch.empty(draft.shape[0], groups, dtype=torch.float32, device=device)
        verify_weights_kernel[(batch,)](
            *rows,
            *sums,
            draft_token_ids,
            cu,
            temperature,
            weight,
            *strides,
            groups,
            GIVEN=given,
            BLOCK=block,
            num_warps=1,
        )
        verify_masses_kernel[(draft.shape[0], groups)](
            *rows,
            *sums,
            cu,
            temperature,
            weight,
            mass,
            *strides,
            batch,
            groups,
            GIVEN=given,
            TILE=TILE,
            BLOCK=block,
            num_warps=warps,
        )
    shares = torch.empty(2, batch, dtype=torch.float32, device=device)
    verify_decide_kernel[(batch,)](
        *rows, target_peak, target_total, target_at, draft_peak, draft_total, draft_token_ids, cu, temperature, *keys,
        weight, mass, accepted, shares, *strides, batch, groups, lenience,
        GIVEN=given, BY_BLOCK=weight is not None, BLOCK=block, num_warps=1,
    )  # fmt: skip
    best = torch.empty(2, batch, groups, dtype=torch.float32, device=device)
    at = torch.empty(2, batch, groups, dtype=torch.int32, device=device)
    verify_resample_kernel[(batch, groups)](
        *rows, *sums, cu, temperature, *keys, accepted, shares, best, at, *strides, batch, groups,
        GIVEN=given, TILE=TILE, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    verify_combine_kernel[(batch,)](best, at, following, batch, groups, BLOCK=block, num_warps=1)
    return Verified(accepted, following)
