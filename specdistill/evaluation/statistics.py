"""Intervals: bootstrap over prompts, because tokens of one answer are not independent of each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Estimate(NamedTuple):
    """A value and its 95 % percentile interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, object]:
        """{"mean": ..., "ci95": [low, high]}."""
        return {"mean": self.mean, "ci95": [self.low, self.high]}


def of_sums(function: Callable[..., np.ndarray], *columns: ArrayLike, resamples: int = 2000, seed: int = 0) -> Estimate:
    """A function of per-prompt sums, with prompts resampled *together* in every column, so differences are paired.

    Args:
        function: Takes one array of sums per column and returns the values; plain arithmetic will do.
        columns: One value per prompt each, all of the same length.
        resamples: Bootstrap samples.
        seed: Random seed for the bootstrap.
    """
    arrays = [np.asarray(column, dtype=float) for column in columns]
    rows = np.random.default_rng(seed).integers(0, len(arrays[0]), size=(resamples, len(arrays[0])))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = function(*(array[rows].sum(1) for array in arrays))
        mean = float(function(*(array.sum() for array in arrays)))
    # A resample without a single token of some kind has no value; it says nothing about the spread.
    values = values[np.isfinite(values)]
    if not len(values):
        return Estimate(mean, float("nan"), float("nan"))
    low, high = np.percentile(values, [2.5, 97.5])
    return Estimate(mean, float(low), float(high))


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Estimate:
    """sum / sum with its 95 % interval, a micro average.

    Args:
        numerators: One value per prompt, [prompts]; for example sums of alpha over tokens.
        denominators: Likewise; for example numbers of tokens.
    """
    return of_sums(lambda over, under: over / under, numerators, denominators)


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
