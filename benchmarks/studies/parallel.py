"""Does a draft that guesses K tokens in one pass beat one that takes a pass for each? On mails to JSON.

    python benchmarks/studies/students.py --output STUDENTS --tasks mails --prepare     (once: the target, its answers)
    python benchmarks/studies/parallel.py --mails STUDENTS/mails --output DIR           (resumable: finished parts stay)
    python benchmarks/studies/parallel.py --mails STUDENTS/mails --output DIR --bench   (alone on the machine)
    python benchmarks/studies/parallel.py --mails STUDENTS/mails --output DIR --collect (writes results/parallel.json)

1. Cuts of 2 and 4 layers of the fine-tuned target, with a head of 8192 ids.
2. From each a single draft (a token per pass) and a parallel one are trained by forward KL on the target's stored
   labels, with equal processor time: the single one's steps decide it. Three seeds.
3. With as many steps as the parallel one of 4 layers: cross entropy on the same answers, as published, and other
   losses; and anchors where the draft's own rounds begin in place of every token.
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

from benchmarks.studies.folders import is_finished
from benchmarks.studies.runs import bench_result, cut_once, train_once
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from benchmarks.support.results import write_result
from specdistill.files.atomic import write_text

TOKENS, STEPS, PILOT_STEPS = 8, 100, 10
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


@dataclass(frozen=True)
class Study:
    """Where everything lies."""

    mails: Path
    """Prepared by students.py."""
    root: Path

    @property
    def target(self) -> str:
        """The fine-tuned target."""
        return str(self.mails / "teacher")

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
        text = {"soft_labels": "labels"} if row.labelled else {"rollouts": "answers"}
        text = {name: str(self.mails / folder) for name, folder in text.items()}
        began = time.process_time()
        train_once(
            run, self.cut(row.layers), target=self.target, prompts=str(self.mails / "train.jsonl"),
            seed=seed, steps=steps, batch_size=8, micro_batch_size=4,
            max_new_tokens=160, eval_every=steps, heldout_prompts=4, patience=0, rule="greedy", precision="float32",
            **row.settings, **text,
        )  # fmt: skip
        return time.process_time() - began

    def train_row(self, name: str, seed: int) -> None:
        """Trains a row's seed once; a run that was cut off starts again, since its time decides others'."""
        row, file = ROWS[name], self.facts(name, seed)
        if file.exists():
            return
        steps = STEPS
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
        size = ["--prompts", str(self.mails / "heldout.jsonl"), "--num-prompts", "12", "--max-new-tokens", "128"]
        size += ["--threads", "1", "--max-draft-tokens", "12"]
        ours, vllm = self.report(name, seed, "specdistill"), self.report(name, seed, "vllm")
        draft = self.run(name, seed)
        if not ours.exists():
            pair = ["--target", self.target, "--draft", str(draft), "--pack", "float32", "--baselines", "none"]
            run_command("bench", *pair, *size, "--json", str(ours))
        if not vllm.exists() and importlib.util.find_spec("vllm"):
            exported = draft.with_name(f"{draft.name}-vllm")
            pair = ["--target", self.target, "--draft", str(draft)]
            if not exported.exists():
                run_command("export", *pair, "--format", "vllm", "--output", str(exported))
            engine = ["--engine", "vllm", "--engine-baselines", "none", "--engine-args=--enforce-eager"]
            length = str(BenchReport.read(ours).num_draft_tokens)
            pair = ["--target", self.target, "--draft", str(exported), "--num-draft-tokens", length]
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
    parser.add_argument("--mails", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true", help="bench what is trained, and nothing else")
    parser.add_argument("--collect", action="store_true", help="write the result file, and nothing else")
    options = parser.parse_args()
    study = Study(options.mails, options.output)
    if options.collect:
        rows = {name: study.entry(name, options.seeds) for name in options.rows}
        return write_result("parallel.json", {"tokens": TOKENS, "rows": rows})
    study.root.mkdir(parents=True, exist_ok=True)
    for layers in sorted({ROWS[name].layers for name in options.rows}):
        calibration = ["--prompts", str(study.mails / "train.jsonl"), "--calibration-prompts", "128"]
        cut_once(study.target, study.cut(layers), "--layers", str(layers), *calibration, "--threads", "1")
    for seed in options.seeds:
        for name in options.rows:
            study.bench(name, seed) if options.bench else study.train_row(name, seed)


if __name__ == "__main__":
    main()
