"""Rows of `students.py`: every method from one warmed-up student, with the same number of steps and answers a step.

One row has the training time of another instead: stored labels against a live target and the student's own answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Answers(Enum):
    """Stored answers that a row reads."""

    NONE = "none"
    TARGET = "answers"
    SMALL = "small-answers"
    """Those of a small teacher, as many as the same sampling compute buys."""


@dataclass(frozen=True)
class StudentRow:
    """A training run from the warmed-up student."""

    settings: dict[str, Any]
    """Flat settings of `TrainConfig` beyond the budget; the result file holds them too."""
    answers: Answers = Answers.NONE
    rewarded: bool = False
    """Whether the task's score is the reward."""
    chosen: bool = False
    """Whether only answers that the task's score finds right are trained on."""
    labelled: bool = False
    """Whether the target's stored labels of its answers stand for the target, which is not loaded."""
    as_long_as: str | None = None
    """Row whose training time with the same seed this one is given, instead of equally many steps."""


FORWARD_KL = {"method": "distillspec", "target_fraction": 1.0}
"""Forward KL on the target's sampled answers."""


def _gkd(lmbda: float, divergence: str) -> StudentRow:
    settings: dict[str, Any] = {"method": "gkd", "lmbda": lmbda, "divergence": divergence}
    return StudentRow(settings, Answers.TARGET)


ROWS = {
    "offline": StudentRow(FORWARD_KL, labelled=True),
    "offline-equal-time": StudentRow(FORWARD_KL, labelled=True, as_long_as="gkd-1-fkl"),
    "sft": StudentRow({"method": "sft"}),
    "seqkd": StudentRow({"method": "seqkd"}, Answers.TARGET),
    "supervised-kd": StudentRow({"method": "supervised-kd"}),
    "gkd-0": _gkd(0.0, "jsd"),
    "gkd-0.5": _gkd(0.5, "jsd"),
    "gkd-1": _gkd(1.0, "jsd"),
    "gkd-1-fkl": _gkd(1.0, "fkl"),
    "gkd-1-rkl": _gkd(1.0, "rkl"),
    "skd": StudentRow({"method": "skd"}),
    "best-of-n": StudentRow({"method": "best-of-n"}, Answers.TARGET, chosen=True),
    "small-teacher": StudentRow({"method": "best-of-n"}, Answers.SMALL, chosen=True),
    "gkd-reward": StudentRow({"method": "gkd", "lmbda": 1.0, "divergence": "rkl"}, Answers.TARGET, rewarded=True),
}
