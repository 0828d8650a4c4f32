"""The search for a threshold: over maxima of chunks in registers, and over the entries of some chunks in memory."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def key_of(values):
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
def largest(keys, worth, low, high, need):
    """The largest key in [low, high] for which the worth of the keys at or above it comes to need, or low."""
    while low < high:
        first, second, third = _candidates(low, high)
        over_first = tl.sum(tl.where(keys >= first.to(tl.int32), worth, 0.0), 0)
        over_second = tl.sum(tl.where(keys >= second.to(tl.int32), worth, 0.0), 0)
        over_third = tl.sum(tl.where(keys >= third.to(tl.int32), worth, 0.0), 0)
        low, high = _narrowed(low, high, first, second, third, over_first, over_second, over_third, need)
    return low


@triton.jit
def _entries(start_ptr, chosen_ptr, chosen, start, vocab, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Entries of the chosen chunks from number `start` on, [BLOCK / 8, 8], -inf beyond them; and which of them exist.

    A thread's 8 neighbours are of one chunk, and sums over them stay in the thread.
    """
    eighth = tl.arange(0, BLOCK // 8)
    number = start + eighth // (CHUNK // 8)
    chunk = tl.load(chosen_ptr + number, mask=number < chosen, other=0).to(tl.int32)
    columns = (chunk * CHUNK + eighth % (CHUNK // 8) * 8)[:, None] + tl.arange(0, 8)[None, :]
    inside = (number < chosen)[:, None] & (columns < vocab)
    return tl.load(start_ptr + columns, mask=inside, other=-float("inf")).to(tl.float32), inside


@triton.jit
def search(
    start_ptr, chosen_ptr, chosen, vocab, peak, temperature, floor, low, high, need, BY_MASS: tl.constexpr,
    SHIFT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`largest` over the entries of the chosen chunks.

    BY_MASS: an entry counts its softmax weight, or 0 below `floor`. Otherwise it counts 1.
    """
    while low < high:
        first, second, third = _candidates(low, high)
        over_first = tl.zeros((BLOCK // 8,), tl.float32)
        over_second = tl.zeros((BLOCK // 8,), tl.float32)
        over_third = tl.zeros((BLOCK // 8,), tl.float32)
        for start in range(0, chosen, BLOCK // CHUNK):
            scores, inside = _entries(start_ptr, chosen_ptr, chosen, start, vocab, CHUNK, BLOCK)
            keys = key_of(scores) >> SHIFT
            # Counts up to 2**24 are exact in float32, and a lane sees few entries only.
            worth = tl.where(inside, 1.0, 0.0)
            if BY_MASS:
                worth = tl.where(keys >= floor.to(tl.int32), tl.exp((scores - peak) / temperature), 0.0)
            over_first += tl.sum(tl.where(keys >= first.to(tl.int32), worth, 0.0), 1)
            over_second += tl.sum(tl.where(keys >= second.to(tl.int32), worth, 0.0), 1)
            over_third += tl.sum(tl.where(keys >= third.to(tl.int32), worth, 0.0), 1)
        low, high = _narrowed(
            low, high, first, second, third, tl.sum(over_first, 0), tl.sum(over_second, 0), tl.sum(over_third, 0), need
        )
    return low


@triton.jit
def mass_of(
    start_ptr, chosen_ptr, chosen, vocab, peak, temperature, floor,
    SHIFT: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Softmax weight, relative to the peak's, of the chosen chunks' entries at or above floor."""
    masses = tl.zeros((BLOCK // 8,), tl.float32)
    for start in range(0, chosen, BLOCK // CHUNK):
        scores, _ = _entries(start_ptr, chosen_ptr, chosen, start, vocab, CHUNK, BLOCK)
        kept = (key_of(scores) >> SHIFT) >= floor.to(tl.int32)
        masses += tl.sum(tl.where(kept, tl.exp((scores - peak) / temperature), 0.0), 1)
    return tl.sum(masses, 0)


@triton.jit
def unlikely(peak, temperature, mass, top_p, vocab, SHIFT: tl.constexpr):
    """A key such that the ids below it weigh less than 1 - top_p together, so that the others are enough.

    An id below it is less likely than half of (1 - top_p) / vocab.
    """
    bound = peak + temperature * (tl.log(mass) + tl.log((1 - top_p) / (2.0 * vocab)))
    return (key_of(bound) >> SHIFT).to(tl.int64)
