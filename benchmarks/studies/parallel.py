"""Does a draft that guesses K tokens in one pass beat one that takes a pass for each?

    python benchmarks/studies/students.py --output STUDENTS --tasks mails --prepare   (once: a target, its answers)
    python benchmarks/studies/parallel.py --mails STUDENTS/mails --output DIR         (resumable: finished parts stay)
    python benchmarks/studies/parallel.py --code METHODS --output OTHER               (the folder of methods.py)

With `--bench` (alone on the machine) what is trained is benched, with `--collect` the result file is written.

1. Mails to JSON: a fine-tuned target. Code: SmolLM2 as it is, on HumanEval's prompts, with the budget of the depths of
   methods.py. Cuts of 2 and 4 layers with a head of 8192 ids learn to guess one token: the starts.
2. From each start a parallel draft and, for the same processor time, an ordinary one are trained further by forward KL
   on the target's stored labels. On mails also a parallel draft straight from the cut, for the time of both stages.
3. On mails, 4 layers, fewer steps: other losses, cross entropy on the same answers (as published), PARD-2's weights,
   and anchors where the draft's own rounds begin in place of every token.
4. Predicted tokens per target call for every K on greedy answers to held-out prompts. Then `specdistill bench`, greedy:
   the cost of a round and the measured speed-up; in vLLM too where it is installed. Three seeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import is_finished
from benchmarks.studies.parallel_rows import BENCHED, STEPS, TOKENS, Row, Task, rows
from benchmarks.studies.parallel_scores import TokensPerCall, tokens_over, tokens_per_call
from benchmarks.studies.runs import bench_result, cut_once, train_once
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from benchmarks.support.history import read_history
from benchmarks.support.results import write_result
from specdistill.files.atomic import write_text

PILOT_STEPS = (4, 16)
"""Steps of the two short runs that tell what loading and judging take, and what a step takes."""


@dataclass(frozen=True)
class Study:
    """Where everything lies."""

    task: Task
    root: Path

    @property
    def rows(self) -> dict[str, Row]:
        """The task's rows."""
        found = rows(self.task.budget["steps"])
        return {name: found[name] for name in self.task.rows}

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
        every = max(1, steps // 3) if row.steps == STEPS else steps
        settings = task.budget | row.settings | {"steps": steps, "eval_every": every, "patience": 0, "seed": seed}
        settings |= {"rule": "greedy", "precision": "float32", "keep": "last"}
        start = self.run(row.start, seed) if row.start else self.cut(row.layers)
        began = time.process_time()
        train_once(run, start, target=task.target, prompts=str(task.prompts / "train.jsonl"), **settings, **text)
        return time.process_time() - began

    def train_row(self, name: str, seed: int) -> None:
        """Trains a row's seed once; a run that was cut off starts again, since its time decides others'."""
        row, file = self.rows[name], self.facts(name, seed)
        if file.exists():
            return
        steps = row.steps or self._affordable_steps(name, seed)
        taken = self.train(self.run(name, seed), row, seed, steps)
        write_text(file, json.dumps({"steps": steps, "seconds": taken}))

    def _affordable_steps(self, name: str, seed: int) -> int:
        """Steps that fit into the time of other rows, by two pilots of this one."""
        row, pilots = self.rows[name], []
        for steps in PILOT_STEPS:
            run = self.root / f"{name}-pilot-{steps}"
            file = run.with_suffix(".facts.json")
            if not file.exists():
                write_text(file, json.dumps(self.train(run, row, seed, steps)))
            pilots.append(json.loads(file.read_text()))
        per_step = (pilots[1] - pilots[0]) / (PILOT_STEPS[1] - PILOT_STEPS[0])
        budget = sum(self._read(other, seed)["seconds"] for other in row.as_long_as)
        return max(1, round((budget - pilots[0]) / per_step) + PILOT_STEPS[0])

    def _read(self, name: str, seed: int) -> dict[str, Any]:
        return json.loads(self.facts(name, seed).read_text())

    def trained_seeds(self, name: str, seeds: list[int]) -> list[int]:
        """Those of the seeds whose run of a row has ended."""
        return [seed for seed in seeds if self.facts(name, seed).exists()]

    def bench(self, name: str, seed: int) -> None:
        """Benches a trained run in our decoder, then in vLLM with the length that was best here."""
        if not is_finished(self.run(name, seed)):
            return
        size = ["--prompts", str(self.task.prompts / "heldout.jsonl"), "--num-prompts", "12"]
        size += ["--max-new-tokens", str(min(128, self.task.max_new_tokens)), "--threads", "1"]
        ours, vllm = self.report(name, seed, "specdistill"), self.report(name, seed, "vllm")
        draft, target = self.run(name, seed), self.task.target
        if not ours.exists():
            pair = ["--target", target, "--draft", str(draft), "--pack", "float32", "--baselines", "none"]
            run_command("bench", *pair, *size, "--max-draft-tokens", "12", "--json", str(ours))
        if not vllm.exists() and importlib.util.find_spec("vllm"):
            exported = draft.with_name(f"{draft.name}-vllm")
            if not exported.exists():
                pair = ["--target", target, "--draft", str(draft)]
                run_command("export", *pair, "--format", "vllm", "--output", str(exported))
            engine = ["--engine", "vllm", "--engine-baselines", "none", "--engine-args=--enforce-eager"]
            length = str(BenchReport.read(ours).num_draft_tokens)
            pair = ["--target", target, "--draft", str(exported), "--num-draft-tokens", length]
            run_command("bench", *pair, *engine, *size, "--json", str(vllm))

    def entry(self, name: str, seeds: list[int], scores: TokensPerCall) -> dict[str, Any]:
        """A row of the result: facts and benches seed by seed, scores of all together."""
        row, found = self.rows[name], []
        for seed in self.trained_seeds(name, seeds):
            history = read_history(self.run(name, seed))
            one = self._read(name, seed) | {"tokens_trained": history[-1]["tokens_seen"]}
            one["heldout"] = [_curve_point(at) for at in history]
            for engine in ("specdistill", "vllm"):
                path = self.report(name, seed, engine)
                if path.exists():
                    report = BenchReport.read(path)
                    one[engine] = bench_result(report) if engine == "specdistill" else _engine_result(report)
            found.append(one)
        sums = [scores.score_once(self.run(name, seed)) for seed in self.trained_seeds(name, seeds)]
        return {
            "layers": row.layers, "start": row.start, "settings": row.settings, "seeds": found,
            "tokens_per_call": tokens_per_call(sums),
        }  # fmt: skip

    def over(self, name: str, base: str, seeds: list[int], scores: TokensPerCall) -> dict[str, Any]:
        """Tokens per call at K minus those of another row, over the seeds that both have."""
        both = [seed for seed in self.trained_seeds(name, seeds) if seed in self.trained_seeds(base, seeds)]
        own, others = ([scores.score_once(self.run(row, seed)) for seed in both] for row in (name, base))
        return tokens_over(own, others, TOKENS) | {"seeds": len(both)}


def _curve_point(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "heldout_alpha_greedy", "heldout_tokens_per_call")
    return {name: entry[name] for name in names if name in entry}


def _engine_result(report: BenchReport) -> dict[str, Any]:
    return {
        "version": report.engine_version,
        "num_draft_tokens": report.num_draft_tokens,
        "mean_acceptance_length": report.mean_acceptance_length,
        "round_cost": report.round_cost[str(report.num_draft_tokens)],
        "speedup": report.speedup,
    }


def collect(study: Study, names: list[str], seeds: list[int]) -> None:
    """Scores what is trained and writes the result file."""
    scores = TokensPerCall(study.task, study.root / "heldout-answers.json")
    trained = [name for name in names if study.trained_seeds(name, seeds)]
    entries = {name: study.entry(name, seeds, scores) for name in trained}
    base = "loss-fkl"
    for name in trained:
        if study.rows[name].steps == study.rows.get(base, Row(0)).steps and name != base:
            entries[name]["over_fkl"] = study.over(name, base, seeds, scores)
    write_result(f"parallel_{study.task.name}.json", {"tokens": TOKENS, **scores.size, "rows": entries})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--mails", type=Path, help="mails to JSON: a folder of students.py")
    task.add_argument("--code", type=Path, help="HumanEval's prompts: a folder of methods.py, made if missing")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*rows(0)], help="all of the task if left out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true", help="bench what is trained, and nothing else")
    parser.add_argument("--collect", action="store_true", help="write the result file, and nothing else")
    options = parser.parse_args()
    study = Study(Task.mails(options.mails) if options.mails else Task.code(options.code), options.output)
    names = list(options.rows or study.task.rows)
    if options.collect:
        return collect(study, names, options.seeds)
    study.root.mkdir(parents=True, exist_ok=True)
    for layers in sorted({study.rows[name].layers for name in names}):
        calibration = ["--prompts", str(study.task.prompts / "train.jsonl"), "--calibration-prompts", "128"]
        cut_once(study.task.target, study.cut(layers), "--layers", str(layers), *calibration, "--threads", "1")
    for seed in options.seeds:
        for name in names:
            if not options.bench:
                study.train_row(name, seed)
            elif name in BENCHED:
                study.bench(name, seed)


if __name__ == "__main__":
    main()
