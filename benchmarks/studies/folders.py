"""The folder of a study: what lies where. A study goes on for days, and finished files are never made again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path

from benchmarks.studies.bench_runs import BenchRun
from specdistill.files.run_settings import SUMMARY_FILE


@dataclass(frozen=True)
class StudyFolder:
    """Paths below the folder that `--output` names."""

    root: Path

    def prompts(self, name: str) -> Path:
        """A set of prompts: `train`, `heldout` or `finetuning`."""
        return self.root / f"{name}.jsonl"

    @property
    def answers(self) -> Path:
        """The target's answers to the training prompts."""
        return self.root / "answers"

    @property
    def heldout_answers(self) -> Path:
        """The target's sampled answers to the held-out prompts."""
        return self.root / "heldout-answers.json"

    def cut(self, layers: int) -> Path:
        """The untrained draft of so many layers."""
        return self.root / f"cut-{layers}"

    def run(self, row: str, seed: int) -> Path:
        """A training run."""
        return self.root / f"{row}-seed{seed}"

    def finished_runs(self, row: str) -> list[Path]:
        """Runs of a row from seed 0 on, up to the first unfinished one: equal places in two rows are equal seeds."""
        return list(takewhile(is_finished, (self.run(row, seed) for seed in count())))

    def bench_report(self, run: BenchRun) -> Path:
        """The JSON report of one bench."""
        return self.root / f"bench-{run.name}.json"


def is_finished(run: Path) -> bool:
    """Whether `train-draft` ended there."""
    return (run / SUMMARY_FILE).exists()


def has_weights(draft: Path) -> bool:
    """Whether a checkpoint lies there."""
    return (draft / "model.safetensors").exists()
