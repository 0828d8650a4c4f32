"""Intervals: bootstrap over prompts, because tokens of one answer are not independent of each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

FEWEST_UNITS = 6
"""Units (prompts, or batches that share a clock) below which there is no interval.

A bootstrap never leaves the range of its units, and even the whole range of n units holds a median with probability
1 - 2 / 2^n only: 0.94 for 5, 0.97 for 6.
"""


class Estimate(NamedTuple):
    """A value and its 95 % percentile interval; low and high are NaN where there are too few units for one."""

    mean: float
    low: float
    high: float

    @property
    def has_interval(self) -> bool:
        """Whether there were enough units for an interval."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def to_json(self) -> dict[str, object]:
        """{"mean": ..., "ci95": [low, high]}; null where there is no number."""
        mean, low, high = (value if math.isfinite(value) else None for value in self)
        return {"mean": mean, "ci95": [low, high]}


def of_sums(
    function: Callable[..., np.ndarray],
    *columns: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    coverage: float = 0.95,
) -> Estimate:
    """A function of per-prompt sums, with prompts resampled *together* in every column, so differences are paired.

    Args:
        function: Takes one array of sums per column and returns the values; plain arithmetic will do.
        columns: One value per prompt each, all of the same length.
        resamples: Bootstrap samples.
        seed: Random seed for the bootstrap.
        coverage: Probability of the interval; more than 0.95 where several are looked at together.

    Returns:
        The value, with an interval where at least `FEWEST_UNITS` prompts hold something.
    """
    arrays = [np.asarray(column, dtype=float) for column in columns]
    rows = np.random.default_rng(seed).integers(0, len(arrays[0]), size=(resamples, len(arrays[0])))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = function(*(array[rows].sum(1) for array in arrays))
        mean = float(function(*(array.sum() for array in arrays)))
    # A resample without a single token of some kind has no value; it says nothing about the spread.
    values = values[np.isfinite(values)]
    # Prompts that are zero in every column add nothing to any sum.
    if not len(values) or np.any(arrays, axis=0).sum() < FEWEST_UNITS:
        return Estimate(mean, float("nan"), float("nan"))
    low, high = np.percentile(values, [50 * (1 - coverage), 50 * (1 + coverage)])
    return Estimate(mean, float(low), float(high))


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """sum / sum with its 95 % interval, a micro average.

    Args:
        numerators: One value per prompt, [prompts]; for example sums of alpha over tokens.
        denominators: Likewise; for example numbers of tokens.
    """
    return of_sums(lambda over, under: over / under, numerators, denominators)


def share(values: ArrayLike) -> Estimate:
    """Mean of one value per prompt with its 95 % interval over prompts.

    Where all are 0 or all are 1, a bootstrap sees no spread; the interval is then Clopper and Pearson's, of a share.

    Args:
        values: [prompts], not empty.
    """
    numbers = np.asarray(values, dtype=float)
    found = ratio(numbers, np.ones(len(numbers)))
    if not found.has_interval or found.mean not in (0.0, 1.0) or np.any(numbers != found.mean):
        return found
    unseen = 0.025 ** (1 / len(numbers))
    return Estimate(1.0, unseen, 1.0) if found.mean else Estimate(0.0, 0.0, 1 - unseen)


def paired_difference(after: tuple[ArrayLike, ArrayLike], before: tuple[ArrayLike, ArrayLike]) -> Estimate:
    """ratio(after) - ratio(before) over the same prompts: an interval that excludes zero is a change.

    Args:
        after, before: (numerators, denominators), one value per prompt each, [prompts], in the same order of prompts;
            for example two results of `acceptance.alpha_sums`.

    Returns:
        The difference and its 95 % interval, in the ratio's own unit. Prompts are resampled together for both sides.

    Raises:
        ValueError: The columns differ in length.
    """
    return of_sums(lambda a, b, c, d: a / b - c / d, *after, *before)
