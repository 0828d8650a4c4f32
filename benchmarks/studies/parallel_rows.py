"""Rows and tasks of `parallel.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.method_rows import DEPTH_BUDGET
from benchmarks.studies.method_runs import DEPTH_LABELS, prepare_labels
from benchmarks.support.paths import target_file

TOKENS, STEPS, LOSS_STEPS = 8, 120, 48
"""Tokens that a parallel draft guesses, and steps of the rows that set the others' time."""
LABELLED = {"method": "distillspec", "target_fraction": 1.0}
PARALLEL = LABELLED | {"parallel": TOKENS}


@dataclass(frozen=True)
class Row:
    """A draft of the study."""

    layers: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Flat settings of `TrainConfig` beyond the budget; the result file holds them too."""
    start: str | None = None
    """Row whose draft of the same seed this one goes on from; None for the untrained cut."""
    steps: int | None = None
    """Optimiser steps; None where another row's time decides."""
    as_long_as: tuple[str, ...] = ()
    """Rows whose processor time together this one gets."""
    labelled: bool = True
    """Whether the target's stored labels are learnt from; else only its answers."""


def _loss(labelled: bool = True, **settings: Any) -> Row:
    return Row(4, PARALLEL | settings, "start-4", LOSS_STEPS, labelled=labelled)


def rows(start_steps: int) -> dict[str, Row]:
    """All rows, each after those that it needs.

    Args:
        start_steps: Steps of the ordinary drafts that all but the cold one go on from.
    """
    depths = (2, 4)
    return {
        **{f"start-{layers}": Row(layers, LABELLED, steps=start_steps) for layers in depths},
        **{f"parallel-{layers}": Row(layers, PARALLEL, f"start-{layers}", STEPS) for layers in depths},
        **{
            f"single-{layers}": Row(layers, LABELLED, f"start-{layers}", as_long_as=(f"parallel-{layers}",))
            for layers in depths
        },
        "cold-4": Row(4, PARALLEL, as_long_as=("start-4", "parallel-4")),
        "loss-fkl": _loss(),
        "loss-ce": _loss(labelled=False, method="seqkd"),
        "loss-jsd": _loss(divergence="jsd"),
        "loss-tvd": _loss(divergence="tvd"),
        "loss-lk_lambda": _loss(divergence="lk_lambda"),
        "confidence": _loss(parallel_confidence=True),
        "rounds": _loss(anchors="rounds"),
    }


BENCHED = ("parallel-2", "parallel-4", "single-2", "single-4")
"""Rows whose speed is measured."""


@dataclass(frozen=True)
class Task:
    """A target, its prompts and its answers, made by another study."""

    name: str
    target: str
    prompts: Path
    """Folder of `train.jsonl` and `heldout.jsonl`."""
    labels: Path
    answers: Path
    budget: dict[str, Any]
    """Flat settings of `TrainConfig`: steps of the start, answers per step, tokens per answer."""
    rows: tuple[str, ...]
    """Rows that are trained for it."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.budget["max_new_tokens"]

    @staticmethod
    def mails(folder: Path) -> Task:
        """Mails to JSON, in the folder that students.py prepared."""
        budget = {"steps": 100, "batch_size": 8, "micro_batch_size": 4, "max_new_tokens": 160, "heldout_prompts": 4}
        teacher, names = str(folder / "teacher"), tuple(rows(0))
        return Task("mails", teacher, folder, folder / "labels", folder / "answers", budget, names)

    @staticmethod
    def code(root: Path) -> Task:
        """HumanEval's prompts, in the folder of methods.py, with the budget of its depths."""
        folder = StudyFolder(root)
        prepare_labels(folder)
        names = ("start-2", "start-4", *BENCHED)
        labels = DEPTH_LABELS.directory(folder)
        return Task("code", str(target_file()), root, labels, folder.answers, DEPTH_BUDGET, names)
