"""Which kind of draft pays: a cut that takes a pass per token, a parallel one, or a head that reads the target?

    python benchmarks/studies/kinds.py TASK FOLDER --output DIR            (resumable: finished parts stay)
    python benchmarks/studies/kinds.py TASK FOLDER --output DIR --bench    (alone on the machine)
    python benchmarks/studies/kinds.py TASK FOLDER --output DIR --collect  (adds to results/kinds_TASK.json)

Each task makes what it needs in FOLDER. A folder of methods.py does for `code`.

1. Cuts of 2 and 4 layers with a head of 8192 ids learn to guess one token: the starts.
2. From each start a parallel draft and, for the same processor time, an ordinary one are trained further by forward KL
   on the target's stored labels. An EAGLE-3 head learns for the time of both stages, from the same answers. On mails
   also: a parallel draft straight from the cut, and a head of the target as it was before it was fine-tuned.
3. On mails, 4 layers, fewer steps: other losses for parallel drafts, cross entropy on the same answers (as published),
   PARD-2's weights, and anchors where the draft's own rounds begin in place of every token. Heads also on SKD's text.
4. Predicted tokens per target call for every draft length on greedy answers to held-out prompts. Then `specdistill
   bench`: the cost of a round and the measured speed-up; in vLLM too where it is installed. Three seeds.
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

from benchmarks.studies.folders import has_weights, is_finished
from benchmarks.studies.kind_results import rounds_text, write_merged
from benchmarks.studies.kind_rows import BENCHED, HEAD, KEPT_IDS, LOSS_STEPS, TASKS, TOKENS, Row, Task, rows
from benchmarks.studies.kind_scores import LONGEST, TokensPerCall
from benchmarks.studies.runs import bench_result, cut_once, train_once
from benchmarks.support.bench_report import BenchReport
from benchmarks.support.commands import run_command
from benchmarks.support.history import read_history
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
        found = rows(self.task.budget["steps"], self.task.stage_steps)
        return {name: found[name] for name in self.task.rows}

    def run(self, row: str, seed: int) -> Path:
        """A training run."""
        return self.root / f"{row}-seed{seed}"

    def untrained(self, row: Row) -> Path:
        """The draft that nothing was taught yet."""
        kind = "untrained-head" if row.untrained == HEAD else f"cut-{row.untrained}"
        return self.root / f"{kind}{'-before' if row.before else ''}"

    def make_untrained(self, row: Row) -> None:
        """Makes that draft where it is missing."""
        target = self._target(row)
        calibration = ["--prompts", self.task.prompts, "--calibration-prompts", "128", "--threads", "1"]
        if row.untrained == HEAD:
            if not has_weights(self.untrained(row)):
                shape = ["--kind", "eagle3", "--vocab-keep", str(KEPT_IDS), "--output", str(self.untrained(row))]
                run_command("init-draft", "--target", target, *shape, *calibration)
            return
        cut_once(target, self.untrained(row), "--layers", str(row.untrained), *calibration)

    def _target(self, row: Row) -> str:
        return str(self.task.before) if row.before else self.task.target

    def facts(self, row: str, seed: int) -> Path:
        """Steps and processor seconds of a run."""
        return self.root / f"{row}-seed{seed}.facts.json"

    def report(self, row: str, seed: int, engine: str, temperature: int) -> Path:
        """The report of a bench."""
        hot = f"-t{temperature}" if temperature else ""
        return self.root / f"{row}-seed{seed}.{engine}{hot}.json"

    def train(self, run: Path, row: Row, seed: int, steps: int) -> float:
        """Trains a run; returns processor seconds, with loading."""
        # Not resumed: half a run's time would decide the steps of others.
        shutil.rmtree(run, ignore_errors=True)
        task, text = self.task, self._text(row)
        every = max(1, steps // 3) if steps == task.stage_steps else steps
        settings = task.budget | row.settings | {"steps": steps, "eval_every": every, "patience": 0, "seed": seed}
        settings |= {"rule": "greedy", "precision": "float32", "keep": "last"}
        start = self.run(row.start, seed) if row.start else self.untrained(row)
        began = time.process_time()
        train_once(run, start, target=self._target(row), prompts=task.prompts, **settings, **text)
        return time.process_time() - began

    def _text(self, row: Row) -> dict[str, str]:
        """Setting that names what a row learns from; none where it writes its text itself."""
        if row.settings["method"] == "skd":
            return {}
        if row.untrained == HEAD:
            return {"soft_labels": str(self.task.head_labels(self.root, row.before))}
        return {"soft_labels": str(self.task.labels)} if row.labelled else {"rollouts": str(self.task.answers)}

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

    def bench(self, name: str, seed: int, temperature: int) -> None:
        """Benches a trained run in our decoder, then in vLLM with the length that was best here."""
        draft, target = self.run(name, seed), self.task.target
        if not is_finished(draft):
            return
        size = ["--prompts", str(self.task.heldout), "--num-prompts", "12", "--threads", "1"]
        size += ["--max-new-tokens", str(min(128, self.task.max_new_tokens)), "--temperature", str(temperature)]
        ours, vllm = (self.report(name, seed, engine, temperature) for engine in ("specdistill", "vllm"))
        # Copying is the target's own: with one row's draft it is compared once.
        copies = "best" if name == HEAD else "none"
        if not ours.exists():
            pair = ["--target", target, "--draft", str(draft), "--pack", "float32", "--baselines", copies]
            run_command("bench", *pair, *size, "--max-draft-tokens", "12", "--json", str(ours))
        if not vllm.exists() and importlib.util.find_spec("vllm"):
            exported = draft.with_name(f"{draft.name}-vllm")
            if not exported.exists():
                pair = ["--target", target, "--draft", str(draft)]
                run_command("export", *pair, "--format", "vllm", "--output", str(exported))
            engine = ["--engine", "vllm", "--engine-baselines", copies, "--engine-args=--enforce-eager"]
            length = str(BenchReport.read(ours).num_draft_tokens)
            pair = ["--target", target, "--draft", str(exported), "--num-draft-tokens", length]
            run_command("bench", *pair, *engine, *size, "--json", str(vllm))

    def entry(self, name: str, seeds: list[int], scores: TokensPerCall) -> dict[str, Any]:
        """A row of the result: facts, target calls and benches, seed by seed."""
        row, found = self.rows[name], []
        for seed in self.trained_seeds(name, seeds):
            history = read_history(self.run(name, seed))
            one = {"seed": seed} | self._read(name, seed) | {"tokens_trained": history[-1]["tokens_seen"]}
            one["heldout"] = [_curve_point(at) for at in history]
            longest = TOKENS if row.steps == LOSS_STEPS else LONGEST
            one["rounds"] = rounds_text(scores.score_once(self.run(name, seed), longest))
            for engine in ("specdistill", "vllm"):
                for temperature in self.task.temperatures:
                    path = self.report(name, seed, engine, temperature)
                    if path.exists():
                        one[f"{engine}-{temperature}"] = _bench_entry(BenchReport.read(path), engine)
            found.append(one)
        facts = {"untrained": row.untrained, "start": row.start, "steps": row.steps, "settings": row.settings}
        return facts | {"seeds": found}


def _curve_point(entry: dict[str, Any]) -> dict[str, Any]:
    names = ("step", "heldout_alpha_greedy", "heldout_tokens_per_call")
    return {name: entry[name] for name in names if name in entry}


def _bench_entry(report: BenchReport, engine: str) -> dict[str, Any]:
    if engine == "specdistill":
        found = bench_result(report)
    else:
        found = {
            "version": report.engine_version,
            "num_draft_tokens": report.num_draft_tokens,
            "mean_acceptance_length": report.mean_acceptance_length,
            "round_cost": report.round_cost[str(report.num_draft_tokens)],
            "speedup": report.speedup,
        }
    plain, drafted = (report.latency(side) for side in ("baseline", "speculative"))
    found["speedup_after_first_token"] = plain["time_per_output_token"] / drafted["time_per_output_token"]
    found["first_token_seconds"] = [plain["time_to_first_token"], drafted["time_to_first_token"]]
    copies = {name: way["speedup"] for name, way in report.baselines.items() if way.get("speedup")}
    return found | ({"copies": copies} if copies else {})


def collect(study: Study, names: list[str], seeds: list[int]) -> None:
    """Scores what is trained, and writes it into the result file."""
    scores = TokensPerCall(study.task, study.root / "heldout-answers.json")
    trained = [name for name in names if study.trained_seeds(name, seeds)]
    entries = {name: study.entry(name, seeds, scores) for name in trained}
    write_merged(study.task.name, scores.size, scores.answer_tokens, entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=[*TASKS])
    parser.add_argument("folder", type=Path, help="of prompts, answers and labels")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*rows(0, 0)], help="all of the task if left out")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--bench", action="store_true", help="bench what is trained, and nothing else")
    parser.add_argument("--collect", action="store_true", help="add to the result file, and nothing else")
    options = parser.parse_args()
    study = Study(TASKS[options.task](options.folder), options.output)
    names = list(options.rows or study.task.rows)
    if options.collect:
        return collect(study, names, options.seeds)
    study.root.mkdir(parents=True, exist_ok=True)
    if not options.bench:
        study.task.prepare()
    for seed in options.seeds:
        for name in names:
            if options.bench:
                for temperature in study.task.temperatures if name in BENCHED else ():
                    study.bench(name, seed, temperature)
                continue
            study.make_untrained(study.rows[name])
            study.train_row(name, seed)


if __name__ == "__main__":
    main()
