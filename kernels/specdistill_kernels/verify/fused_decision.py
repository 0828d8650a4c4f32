"""How many draft tokens a request keeps, by every rule that has draft probabilities; from row statistics alone."""

from __future__ import annotations

import triton
import triton.language as tl

from specdistill_kernels.fused_scan import NOWHERE, setting_of
from specdistill_kernels.noise.fused import coins
from specdistill_kernels.verify.fused_block import masses_of
from specdistill_kernels.verify.fused_rows import POSITIONS, argmaxes, bounds, log_ratios, warm_temperature


@triton.jit
def decide(
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
    request,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    lenience,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """How many draft tokens of a request stay, and the weights a and b of the next token's law (a p - b q)+."""
    first, drafted = bounds(request, cu_ptr)
    temperature, warm = setting_of(temperature_setting, request), warm_temperature(temperature_setting, request)
    seed, base = tl.load(seed_ptr + request), tl.load(position_ptr + request)
    kept = tl.full((), 0, tl.int64)
    p_share = 1.0
    start = tl.full((), 0, tl.int64)
    going = drafted > 0
    while going:
        index = start + tl.arange(0, POSITIONS)
        inside = index < drafted
        # Beyond the draft the last row is read again.
        draft_rows = first + tl.minimum(index, drafted - 1)
        rows = draft_rows + request
        tokens = tl.load(token_ptr + draft_rows).to(tl.int64)
        start += POSITIONS
        if temperature == 0:
            own = argmaxes(peak_ptr, at_ptr, total_ptr, rows, groups, BLOCK)
            kept = tl.minimum(_first_not(inside & (tokens == own) & (own >= 0), index), start)
            going = (kept == start) & (start < drafted)
        else:
            throws = coins(seed, base + index, base)
            if weight_ptr is not None:
                weights = tl.load(weight_ptr + draft_rows)
                masses = masses_of(mass_ptr, first + tl.minimum(index + 1, drafted - 1), groups, BLOCK)
                spoken = masses + 1 - weights
                # Both vanish only when the prefix is certain and the laws ahead agree.
                chances = tl.where(spoken > 0, masses / spoken, 1.0)
                chances = tl.where(index + 1 < drafted, chances, weights)
                # NaN: nothing from this token on can be judged, and all later weights are NaN.
                stays = inside & (weights == weights) & (throws < chances)
                last = tl.max(tl.where(stays, index, -1), 0)
                if last >= 0:
                    kept = last + 1
                    p_share = tl.sum(tl.where(index == last, weights, 0.0), 0)
                going = start < drafted
            else:
                ratios = log_ratios(
                    target_ptr, draft_ptr, lowest_ptr, peak_ptr, total_ptr, rows, draft_rows, tokens, target_stride,
                    draft_stride, targets, vocab, groups, warm, GIVEN, BLOCK,
                )  # fmt: skip
                # exp(0) is 1 and the coin is below it: an identical draft is never rejected.
                stays = inside & (throws < tl.exp(ratios) / lenience)
                kept = tl.minimum(_first_not(stays, index), start)
                going = (kept == start) & (start < drafted)
    q_share = 0.0
    if (kept < drafted) & (temperature > 0):
        token = tl.load(token_ptr + first + kept).to(tl.int64)
        # A placeholder proposed nothing, so nothing is to be taken from the target's law.
        q_share = tl.where((token >= 0) & (token < vocab), lenience, 0.0)
    return kept, p_share, q_share


@triton.jit
def _first_not(stays, index):
    """The first position that does not stay, or a number above all."""
    return tl.min(tl.where(stays, NOWHERE, index), 0)


@triton.jit
def verify_decide_kernel(
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
    temperature,
    seed_ptr,
    position_ptr,
    accepted_ptr,
    shares_ptr,
    target_stride,
    draft_stride,
    targets,
    vocab,
    groups,
    lenience,
    GIVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One request's decision. shares is float32 [batch, 2]: a, then b."""
    request = tl.program_id(0).to(tl.int64)
    kept, p_share, q_share = decide(
        target_ptr, draft_ptr, lowest_ptr, peak_ptr, at_ptr, total_ptr, token_ptr, weight_ptr, mass_ptr, cu_ptr,
        temperature, seed_ptr, position_ptr, request, target_stride, draft_stride, targets, vocab, groups, lenience,
        GIVEN, BLOCK,
    )  # fmt: skip
    tl.store(accepted_ptr + request, kept)
    tl.store(shares_ptr + 2 * request, p_share)
    tl.store(shares_ptr + 2 * request + 1, q_share)
