"""Counter-based noise: a number is a function of (seed, position, round, column) alone.

A request's tokens therefore depend neither on the rest of its batch, nor on the order in which programs run, nor on the
backend. Kernels compute the noise where they use it (`noise/fused.py`), so a GPU never stores [rows, vocab] noise.

The generator is Philox 4x32 with 10 rounds. Its key is the 64-bit seed, its counter (c, position, round, stream). One
call yields four numbers. Columns form groups of 4 x 2048: column `8192 g + 2048 lane + i` is number `lane` of counter
`2048 g + i`. A kernel's program of 8192 columns thus computes each counter once, and no thread needs another thread's
number.

There are three streams. Stream 0 picks the target's token; its round is always 0, so that a seed picks the same token
whatever was drafted. Stream 1 picks draft tokens. Stream 2 is the coin of verification. The last two take the number of
tokens already emitted as `round`: in block verification discarded tokens take part in the decision, so their noise must
never be used again.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Gumbel-max: Maddison et al. 2014 (arXiv
1411.0030).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

TARGET, DRAFT, COIN = 0, 1, 2
TILE = 2048
GROUP = 4 * TILE
_ROUNDS = 10
_WORD = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64)[:, None, None]
_RAISES = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64)[:, None, None]


def gumbel(seeds: Tensor, positions: Tensor, rounds: Tensor, stream: int, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 [rows, vocab_size], the same that kernels compute in registers."""
    return exponential(seeds, positions, rounds, stream, vocab_size).log_().neg_()


def exponential(seeds: Tensor, positions: Tensor, rounds: Tensor, stream: int, vocab_size: int) -> Tensor:
    """exp(-gumbel), float32 [rows, vocab_size]: where probabilities are known, p / exponential has the same argmax.

    Args:
        seeds: int64 [rows].
        positions: int64 [rows], which token of its answer a row decides.
        rounds: int64 [rows], see the module's docstring.
        stream: `TARGET` or `DRAFT`.
        vocab_size: Columns.
    """
    # A short row needs the first counters of each lane only.
    width = min(TILE, vocab_size)
    groups = -(-vocab_size // GROUP)
    counters = (np.arange(groups) * TILE)[:, None] + np.arange(width)
    words = philox(seeds, counters.flatten(), positions, rounds, stream)
    # [4, rows, groups * width] -> [rows, groups, 4, width]: columns in order.
    words = words.unflatten(-1, (groups, width)).permute(1, 2, 0, 3)
    return _uniform(words).neg_().log1p_().neg_().flatten(1)[:, :vocab_size]


def coins(seeds: Tensor, positions: Tensor, rounds: Tensor) -> Tensor:
    """Uniform numbers in (0, 1), float32 [rows]: the coins of verification."""
    return _uniform(philox(seeds, np.zeros(1), positions, rounds, COIN)[0, :, 0])


def philox(seeds: Tensor, counters: np.ndarray, positions: Tensor, rounds: Tensor, stream: int) -> Tensor:
    """Philox 4x32-10 words as int64, [4, rows, n], for counters [n] and seeds, positions, rounds int64 [rows].

    Computed in numpy, which has the 64-bit unsigned arithmetic that torch lacks and costs less per operation.
    """
    seed, position, base = (tensor.cpu().numpy().astype(np.uint64) for tensor in (seeds, positions, rounds))
    shape = (2, len(seed), len(counters))
    # Even words (0 and 2) are multiplied, odd ones only mixed in; [2, rows, n] each.
    even, odd = np.empty(shape, np.uint64), np.empty(shape, np.uint64)
    even[0], even[1] = counters, (base & _WORD)[:, None]
    odd[0], odd[1] = (position & _WORD)[:, None], stream
    key = np.stack([seed & _WORD, seed >> _SHIFT])[:, :, None]
    # Three arrays for all rounds: fresh ones of this size would be fresh pages.
    product = np.empty(shape, np.uint64)
    for _ in range(_ROUNDS):
        # New word 0 is high(word 2), so the halves swap. Bits above the 32nd do no harm in odd words, which are only
        # mixed in: one mask a round is enough.
        np.multiply(even, _MULTIPLIERS, out=product)
        product = product[::-1]
        np.right_shift(product, _SHIFT, out=even)
        even ^= odd
        even ^= key
        even &= _WORD
        odd, product = product, odd
        key = (key + _RAISES) & _WORD
    words = np.stack([even[0], odd[0] & _WORD, even[1], odd[1] & _WORD])
    return torch.from_numpy(words.view(np.int64)).to(seeds.device)


def _uniform(words: Tensor) -> Tensor:
    """32-bit words to float32 in (0, 1). Small values keep all their digits: the winners' noise comes from them."""
    return words.float().add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
