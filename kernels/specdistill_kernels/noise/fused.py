"""The noise of `specdistill_kernels.noise` in registers: device functions for kernels that sample.

Philox costs about 15 integer instructions per number where all four words of a call are used. The Gumbel transform adds
two logarithms. Nothing is read from memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Stream numbers, see the package's docstring.
TARGET, DRAFT, COIN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def uniform(words):
    """32-bit words to float32 in (0, 1)."""
    return tl.minimum((words.to(tl.uint32, bitcast=True).to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)


@triton.jit
def _gumbel(words):
    """Standard Gumbel noise from 32-bit words."""
    u = uniform(words)
    # -log(1 - u): the winners of a large vocabulary have tiny u, whose digits 1 - u would round away.
    series = u * (1.0 + u * (0.5 + u * (0.33333334 + u * 0.25)))
    return -tl.log(tl.where(u < 0.03125, series, -tl.log(1.0 - u)))


@triton.jit
def gumbel_group(seed, position, base, group, STREAM: tl.constexpr, TILE: tl.constexpr):
    """Gumbel noise of columns [4 TILE group, 4 TILE (group + 1)), as four tiles in order."""
    counters = (group * TILE + tl.arange(0, TILE)).to(tl.uint32)
    zero = counters * 0
    a, b, c, d = tl.philox(
        seed, counters, zero + position.to(tl.uint32), zero + base.to(tl.uint32), zero + tl.full((), STREAM, tl.uint32)
    )
    return _gumbel(a), _gumbel(b), _gumbel(c), _gumbel(d)


@triton.jit
def coins(seed, positions, base):
    """Uniform numbers, the coins of verification for a block of positions."""
    counters = positions.to(tl.uint32)
    zero = counters * 0
    words, _, _, _ = tl.philox(seed, zero, counters, zero + base.to(tl.uint32), zero + tl.full((), COIN, tl.uint32))
    return uniform(words)
