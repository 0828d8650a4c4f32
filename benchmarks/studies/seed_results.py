"""Seeds of a study's rows as result files hold them: prompt by prompt, so that other machines can go on from the file.

A study is longer than some machines are kept. A row whose checkpoints are gone is still compared, by what is here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

Seed = dict[str, Any]
"""Facts of one training run, `seed` among them."""


def text_of(numbers: ArrayLike) -> str:
    """Numbers of all prompts as one line."""
    return " ".join(f"{number:.10g}" for number in np.asarray(numbers))


def numbers_of(text: str) -> np.ndarray:
    """The numbers of such a line, float64 [prompts]."""
    return np.array([float(number) for number in text.split()])


def merged_seeds(old: list[Seed], new: list[Seed], same_draft: tuple[str, ...]) -> list[Seed]:
    """Seeds of both. One that was trained again replaces the old one.

    Args:
        old: Seeds of the result file.
        new: Seeds that were trained here.
        same_draft: Keys whose values show that both trained the same draft; what only the old entry has then stays.
    """
    found = {seed["seed"]: seed for seed in old}
    for seed in new:
        before = found.get(seed["seed"], {})
        same = all(before[key] == seed[key] for key in same_draft if key in before)
        found[seed["seed"]] = before | seed if same else seed
    return [found[number] for number in sorted(found)]
