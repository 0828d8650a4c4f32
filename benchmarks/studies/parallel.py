"""Does a draft that guesses K tokens in one pass beat one that takes a pass for each?

    python benchmarks/studies/students.py --output STUDENTS --tasks mails --prepare   (once: a target, its answers)
    python benchmarks/studies/parallel.py --mails STUDENTS/mails --output DIR         (resumable: finished parts stay)
    python benchmarks/studies/parallel.py --code METHODS --output OTHER               (the folder of methods.py)

With `--bench` (alone on the machine) what is trained is benched, with `--collect` the result file is written.

1. Mails to JSON: a fine-tuned target. Code: SmolLM2 as it is, on HumanEval's prompts, with the budget of the depths of
   methods.py. Cuts of 2 and 4 layers, with a head of 8192 ids.
2. From each a single draft (a token per pass) and a parallel one are trained by forward KL on the target's stored
   labels, with equal processor time: the single one's steps decide it. Three seeds.
3. On mails, with as many steps as the parallel one of 4 layers: cross entropy on the same answers, as published, and
   other losses; and anchors where the draft's own rounds begin in place of every token.
4. `specdistill bench`, greedy, of each: predicted tokens per target call for every K, the cost of a round, and the
   measured speed-up; in vLLM too where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import StudyFolder, is_finished
from benchmarks.studies.method_rows import DEPTH_BUDGET
from benchmarks.studies.method_runs import DEPTH_LABELS, prepare_labels
from benchmarks.studies.runs import bench_result, cut_once, train_once
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill.files.atomic import write_text

TOKENS, PILOT_STEPS = 8, 10
LABELLED = {"method": "distillspec", "target_fraction": 1.0}


@dataclass(frozen=True)
class Row:
    """A draft of the study."""

    layers: int
    settings: dict[str, Any] = field(default_factory=dict)
    """Flat settings of `TrainConfig` beyond the budget; the result file holds them too."""
    labelled: bool = True
    """Whether the target's stored labels are learnt from; else only its answers."""
    as_long_as: str | None = None
    """Row whose processor time this one gets."""
    as_many_as: str | None = None
    """Row whose steps this one gets."""


PARALLEL = LABELLED | {"parallel": TOKENS}
ROWS = {
    "single-2": Row(2, LABELLED),
    "single-4": Row(4, LABELLED),
    "parallel-2": Row(2, PARALLEL, as_long_as="single-2"),
    "parallel-4": Row(4, PARALLEL, as_long_as="single-4"),
    "parallel-4-ce": Row(4, {"method": "seqkd", "parallel": TOKENS}, labelled=False, as_many_as="parallel-4"),
    "parallel-4-jsd": Row(4, PARALLEL | {"divergence": "jsd"}, as_many_as="parallel-4"),
    "parallel-4-tvd": Row(4, PARALLEL | {"divergence": "tvd"}, as_many_as="parallel-4"),
    "parallel-4-confidence": Row(4, PARALLEL | {"parallel_confidence": True}, as_many_as="parallel-4"),
    "parallel-4-rounds": Row(4, PARALLEL | {"anchors": "rounds"}, as_many_as="parallel-4"),
}


CODE_ROWS = ("single-2", "single-4", "parallel-2", "parallel-4")


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
    """Flat settings of `TrainConfig`: steps of a single draft, answers per step, tokens per answer."""
    rows: tuple[str, ...]
    bench_tokens: int
    """Tokens per answer when benched."""

    @staticmethod
    def mails(folder: Path) -> Task:
        """Mails to JSON, in the folder that students.py prepared."""
        budget = {"steps": 100, "batch_size": 8, "micro_batch_size": 4, "max_new_tokens": 160, "heldout_prompts": 4}
        teacher = str(folder / "teacher")
        return Task("mails", teacher, folder, folder / "labels", folder / "answers", budget, tuple(ROWS), 128)

    @staticmethod
    def code(root: Path) -> Task:
        """HumanEval's prompts, in the folder of methods.py."""
        folder = StudyFolder(root)
        prepare_labels(folder)
        labels, tokens = DEPTH_LABELS.directory(folder), DEPTH_BUDGET["max_new_tokens"]
        return Task("code", str(target_file()), root, labels, folder.answers, DEPTH_BUDGET, CODE_ROWS, tokens)


@dataclass(frozen=True)
class Study:
    """Where everything lies."""

    task: Task
    root: Path

    def run(self, row: str, seed: int) -> Path:
        """A training run."""
        return self.root / f"{row}-seed{seed}"

    def cut(self, layers: int) -> Path:
        """The untrained draft."""
        return self.root / f"cut-{layers}"

    def facts(self, row: str, seed: int) -> Path:
        """Steps and processor seconds of a run."""
        return self.root / f"{row}-seed{seed}.facts.json"

    def report(self, row: str, seed: int, engine: str) -> Path:
        """The report of a bench."""
        return self.root / f"{row}-seed{seed}.{engine}.json"

    def train(self, run: Path, row: Row, seed: int, steps: int) -> float:
        """Trains a run; returns processor seconds, with loading."""
        # Not resumed: half a run's time would decide the steps of others.
        shutil.rmtree(run, ignore_errors=True)
        task = self.task
        text = {"soft_labels": str(task.labels)} if row.labelled else {"rollouts": str(task.answers)}
        settings = task.budget | row.settings | {"steps": steps, "eval_every": steps, "patience": 0, "seed": seed}
        began = time.process_time()
        train_once(
            run, self.cut(row.layers), target=task.target, prompts=str(task.prompts / "train.jsonl"),
            rule="greedy", precision="float32", **settings, **text,
        )  # fmt: skip
        return time.process_time() - began

    def train_row(self, name: str, seed: int) -> None:
        """Trains a row's seed once; a run that was cut off starts again, since its time decides others'."""
        row, file = ROWS[name], self.facts(name, seed)
        if file.exists():
            return
        steps = self.task.budget["steps"]
        if row.as_many_as:
            steps = self._read(row.as_many_as, seed)["steps"]
        elif row.as_long_as:
            pilot = self.root / f"{name}-pilot"
            seconds = pilot.with_suffix(".facts.json")
            if not seconds.exists():
                write_text(seconds, json.dumps(self.train(pilot, row, seed, PILOT_STEPS)))
            budget = self._read(row.as_long_as, seed)["seconds"]
            steps = max(1, round(PILOT_STEPS * budget / json.loads(seconds.read_text())))
        taken = self.train(self.run(name, seed), row, seed, steps)
        write_text(file, json.dumps({"steps": steps, "seconds": taken}))

    def _read(self, name: str, seed: int) -> dict[str, Any]:
        return json.loads(self.facts(name, seed).read_text())

    def bench(self, name: str, seed: int) -> None:
        """Benches a trained run in our decoder, then in vLLM with the length that was best here."""
        if not is_finished(self.run(name, seed)):
            return
        size = ["--prompts", str(self.task.prompts / "heldout.jsonl"), "--num-prompts", "12"]
        size += ["--max-new-tokens", str(self.task.bench_tokens), "--threads", "1", "--max-draft-tokens", "12"]
        ours, vllm = self.report(name, seed, "specdistill"), self.report(name, seed, "vllm")
        draft = self.run(name, seed)
        if not ours.exists():
            pair = ["--target", self.task.target, "--draft", str(draft), "--pack", "float32", "--baselines", "none"]
            run_command("bench", *pair, *size, "--json", str(ours))
        if not vllm.exists() and importlib.util.find_spec("vllm"):
            exported = draft.with_name(f"{draft.name}-vllm")
            pair = ["--target", self.task.target, "--draft", str(draft)]
            if not exported.exists():
                run_command("export", *pair, "--format", "vllm", "--output", str(exported))
            engine = ["--engine", "vllm", "--engine-baselines", "none", "--engine-args=--enforce-eager"]
            length = str(BenchReport.read(ours).num_draft_tokens)
            pair = ["--target", self.task.target, "--draft", str(exported), "--num-draft-tokens", length]
            run_command("bench", *pair, *engine, *size, "--json", str(vllm))

    def entry(self, name: str, seeds: list[int]) -> dict[str, Any]:
        """A row of the result: facts and benches, seed by seed."""
        found: dict[str, Any] = {"layers": ROWS[name].layers, "settings": ROWS[name].settings, "seeds": []}
        for seed in seeds:
            if not self.facts(name, seed).exists():
                continue
            one = self._read(name, seed)
            for engine in ("specdistill", "vllm"):
                path = self.report(name, seed, engine)
                if path.exists():
                    report = BenchReport.read(path)
                    one[engine] = bench_result(report) if engine == "specdistill" else _engine_result(report)
            found["seeds"].append(one)
        return found


def _engine_result(report: BenchReport) -> dict[str, Any]:
    return {
        "version": report.engine_version,
        "num_draft_tokens": report.num_draft_tokens,
        "mean_acceptance_length": report.mean_acceptance_length,
        "round_cost": report.round_cost[str(report.num_draft_tokens)],
        "speedup": report.speedup,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--mails", type=Path, help="mails to JSON: a folder of students.py")
    task.add_argument("--code", type=Path, help="HumanEval's prompts: a folder of methods.py, made if missing")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], help="all of the task if left out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true", help="bench what is trained, and nothing else")
    parser.add_argument("--collect", action="store_true", help="write the result file, and nothing else")
    options = parser.parse_args()
    study = Study(Task.mails(options.mails) if options.mails else Task.code(options.code), options.output)
    names = options.rows or study.task.rows
    if options.collect:
        rows = {name: study.entry(name, options.seeds) for name in names}
        return write_result(f"parallel_{study.task.name}.json", {"tokens": TOKENS, "rows": rows})
    study.root.mkdir(parents=True, exist_ok=True)
    for layers in sorted({ROWS[name].layers for name in names}):
        calibration = ["--prompts", str(study.task.prompts / "train.jsonl"), "--calibration-prompts", "128"]
        cut_once(study.task.target, study.cut(layers), "--layers", str(layers), *calibration, "--threads", "1")
    for seed in options.seeds:
        for name in names:
            study.bench(name, seed) if options.bench else study.train_row(name, seed)


if __name__ == "__main__":
    main()
