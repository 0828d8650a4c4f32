"""Rows and tasks of `kinds.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.method_rows import DEPTH_BUDGET
from benchmarks.studies.method_runs import DEPTH_LABELS, prepare_labels
from benchmarks.studies.self_text import OWN, SELF, write_heldout, write_target_answers
from benchmarks.studies.student_rows import Answers
from benchmarks.studies.student_runs import SCALES, Study, prepare_teacher
from benchmarks.studies.student_tasks import TASKS as STUDENT_TASKS
from benchmarks.support.paths import target_file
from specdistill import AnnotateConfig, GenerateConfig, annotate, generate
from specdistill.report.progress import TerminalProgress

TOKENS, LOSS_STEPS = 8, 48
"""Tokens that a parallel draft guesses, and steps of the rows that compare losses."""
HEAD = "head"
"""In the place of a cut's number of layers."""
KEPT_IDS = 8192
OPEN = OWN | {"prompts": "self:2000"}
"""Settings that name the prompts of `open`: heads soon knew all that 45,000 tokens of answers taught them."""
OPEN_TOKENS = 64
"""Tokens of an answer there, at most."""


@dataclass(frozen=True)
class Row:
    """A draft of the study."""

    untrained: int | str
    """Layers of the cut that it is made of, or HEAD."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Flat settings of `TrainConfig` beyond the budget; the result file holds them too."""
    start: str | None = None
    """Row whose draft of the same seed this one goes on from; None for the untrained draft."""
    steps: int | None = None
    """Optimiser steps; None where other rows' time decides."""
    as_long_as: tuple[str, ...] = ()
    """Rows whose processor time together this one gets."""
    labelled: bool = True
    """Whether the target's stored labels are learnt from; else its answers, by whatever the settings say."""
    before: bool = False
    """Whether it is made and trained for the target as it was before it was fine-tuned, on that one's answers."""


ORDINARY = {"method": "distillspec", "target_fraction": 1.0}
PARALLEL = ORDINARY | {"parallel": TOKENS}


def _loss(**settings: Any) -> Row:
    return Row(4, PARALLEL | settings, "start-4", LOSS_STEPS)


def rows(start_steps: int, stage_steps: int) -> dict[str, Row]:
    """All rows, each after those that it needs.

    Args:
        start_steps: Steps of the ordinary drafts that `parallel` and `single` rows go on from.
        stage_steps: Steps of `parallel` rows.
    """
    depths, both = (2, 4), ("start-4", "parallel-4")
    return {
        **{f"start-{layers}": Row(layers, ORDINARY, steps=start_steps) for layers in depths},
        **{f"parallel-{layers}": Row(layers, PARALLEL, f"start-{layers}", stage_steps) for layers in depths},
        **{
            f"single-{layers}": Row(layers, ORDINARY, f"start-{layers}", as_long_as=(f"parallel-{layers}",))
            for layers in depths
        },
        "cold-4": Row(4, PARALLEL, as_long_as=both),
        "loss-fkl": _loss(),
        "loss-ce": Row(4, {"method": "seqkd", "parallel": TOKENS}, "start-4", LOSS_STEPS, labelled=False),
        "loss-jsd": _loss(divergence="jsd"),
        "loss-tvd": _loss(divergence="tvd"),
        "loss-lk_lambda": _loss(divergence="lk_lambda"),
        "confidence": _loss(parallel_confidence=True),
        "rounds": _loss(anchors="rounds"),
        "head": Row(HEAD, ORDINARY, as_long_as=both),
        "head-before": Row(HEAD, ORDINARY, as_long_as=both, before=True),
        "head-skd": Row(HEAD, {"method": "skd"}, as_long_as=both, labelled=False),
    }


BENCHED = ("parallel-2", "parallel-4", "single-2", "single-4", "head", "head-before")
"""Rows whose speed is measured."""


@dataclass(frozen=True)
class Task:
    """A target, its prompts and its answers."""

    name: str
    target: str
    prompts: str
    """Value of --prompts of the training."""
    heldout: Path
    labels: Path
    answers: Path
    budget: dict[str, Any]
    """Flat settings of `TrainConfig`: steps of the start, answers per step, tokens per answer."""
    stage_steps: int
    rows: tuple[str, ...]
    """Rows that are trained for it."""
    temperatures: tuple[int, ...] = (0,)
    """Temperatures of the benches."""
    before: str | None = None
    """The target before it was fine-tuned."""
    prepare: Callable[[], object] = lambda: None
    """Makes its prompts, answers and labels where they are missing."""

    @property
    def max_new_tokens(self) -> int:
        """Tokens of an answer at most."""
        return self.budget["max_new_tokens"]

    def head_labels(self, folder: Path, before: bool) -> Path:
        """Labels of the answers with the states that a head reads, made where they are missing.

        Args:
            folder: Where they lie.
            before: Whether of the target before it was fine-tuned, on its own answers, two to each prompt.
        """
        target, answers = (self.before, folder / "answers-before") if before else (self.target, self.answers)
        assert target is not None, "the task has a target of before"
        if before:
            shape = {"rollouts_per_prompt": 2, "max_new_tokens": self.max_new_tokens}
            written = GenerateConfig.flat(target=target, output=str(answers), prompts=self.prompts, **shape)
            generate(written, TerminalProgress())
        labels = folder / ("head-labels-before" if before else "head-labels")
        shape = {"top_k": 1, "features": "float16", "threads": 1}
        annotate(
            AnnotateConfig.flat(target=target, output=str(labels), rollouts=str(answers), **shape), TerminalProgress()
        )
        return labels


def mails(folder: Path) -> Task:
    """Mails to JSON, for a target that is fine-tuned on them."""
    scale = replace(SCALES["cpu"], heldout=64)
    study = Study(StudyFolder(folder), replace(STUDENT_TASKS["mails"], adapter=None), scale, "cpu")
    budget = {"steps": 100, "batch_size": 8, "micro_batch_size": 4, "max_new_tokens": 160, "heldout_prompts": 4}
    return Task(
        name="mails",
        target=str(study.teacher),
        prompts=str(study.folder.prompts("train")),
        heldout=study.folder.prompts("heldout"),
        labels=study.labels,
        answers=study.stored(Answers.TARGET),
        budget=budget,
        stage_steps=120,
        rows=tuple(rows(0, 0)),
        before=str(target_file()),
        prepare=lambda: prepare_teacher(study),
    )


def code(root: Path) -> Task:
    """HumanEval's prompts, in the folder of methods.py, with the budget of its depths."""
    folder = StudyFolder(root)
    return Task(
        name="code",
        target=str(target_file()),
        prompts=str(folder.prompts("train")),
        heldout=folder.prompts("heldout"),
        labels=DEPTH_LABELS.directory(folder),
        answers=folder.answers,
        budget=DEPTH_BUDGET,
        stage_steps=120,
        rows=("start-2", "start-4", "parallel-2", "parallel-4", "single-2", "single-4", "head"),
        prepare=lambda: prepare_labels(folder),
    )


def open_chat(folder: Path) -> Task:
    """SmolLM2 as it is on prompts that it writes itself, half an hour for each draft."""
    labels, answers, heldout = folder / "labels-self", folder / "answers-self", folder / "heldout.jsonl"

    def prepare() -> None:
        write_heldout(heldout)
        write_target_answers(answers, OPEN, 1, OPEN_TOKENS)
        shape = {"output": str(labels), "rollouts": str(answers), "threads": 1, "labels": "top-k", "top_k": 64}
        annotate(AnnotateConfig.flat(target=str(target_file()), **shape), TerminalProgress())

    return Task(
        name="open",
        target=str(target_file()),
        prompts=OPEN["prompts"],
        heldout=heldout,
        labels=labels,
        answers=answers,
        budget={
            "steps": 500,
            "batch_size": 8,
            "max_new_tokens": OPEN_TOKENS,
            "heldout_prompts": 8,
            "self_max_tokens": SELF.self_max_tokens,
        },
        stage_steps=400,
        rows=("start-4", "parallel-4", "single-4", "head", "head-skd"),
        temperatures=(0, 1),
        prepare=prepare,
    )


TASKS = {"mails": mails, "code": code, "open": open_chat}
"""Name -> the task in a folder of its own; one of methods.py does for `code`."""
