"""Distillation for its own sake: how well does a student do the task, after every method from one start?

    python benchmarks/studies/students.py --output DIR               (both tasks; resumable: finished parts are kept)
    python benchmarks/studies/students.py --output DIR --workers 8   (so many runs side by side)
    python benchmarks/studies/students.py --output DIR --scale cpu   (a quarter of the size, for two cores)
    python benchmarks/studies/students.py --output DIR --collect     (compares, adds to results/students.json)

Two tasks: customers' mails to JSON, with one right answer (`service_mail.py`), and arithmetic word problems, with
several right ways (`word_problems.py`). For each:

1. The teacher is SmolLM2-135M-Instruct, fine-tuned; for mails by the committed adapter. It answers the training
   prompts four times, sampled.
2. Students of 4 and 8 of its layers are cut out and fine-tuned on other prompts with given answers: the start.
3. From the start every row of `student_rows.py` goes on with equally many steps, three seeds each; `offline-equal-time`
   with as many as fit into the time of `gkd-1-fkl`. The last step is kept.
4. Judged on held-out prompts: the student's own greedy answers by the task's scores, and alpha under every rule on the
   teacher's sampled answers. Intervals are over prompts, differences paired with the start.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.student_results import SCORES_FILE, merged_task, seed_entry
from benchmarks.studies.student_rows import ROWS, StudentRow
from benchmarks.studies.student_runs import SCALES, SECONDS_FILE, Judge, Study, prepare, timed_after, train_row
from benchmarks.studies.student_tasks import TASKS
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import write_result_to

DEPTHS, SEEDS = (4, 8), (0, 1, 2)
WAIT_SECONDS = 20
"""Between looks for the times that a run waits for."""
SLOW_FIRST = ("skd", "gkd-reward", "gkd-1", "gkd-1-fkl", "gkd-1-rkl", "gkd-0.5")
Job = tuple[str, str, int, int]
"""Task, row, depth, seed."""


def settings_of(row: StudentRow, study: Study) -> dict[str, Any]:
    """The row's settings in the result file."""
    more: dict[str, Any] = {"answers": row.answers.value}
    more |= {"scorer": study.task.scorer, "keep_correct": True} if row.chosen else {}
    return row.settings | more | ({"reward": study.task.scorer} if row.rewarded else {})


def collect(studies: list[Study], output: Path) -> None:
    """Adds everything that is trained and scored to the result; needs no model."""
    result = json.loads(output.read_text()) if output.exists() else {"tasks": {}}
    for study in studies:
        if not study.facts.exists():
            continue
        facts = json.loads(study.facts.read_text()) | {"scale": vars(study.scale)}
        trained: dict[int, dict[str, Any]] = {}
        for depth in (depth for depth in DEPTHS if (study.start(depth) / SCORES_FILE).exists()):
            rows: dict[str, Any] = {"start": {"seeds": [seed_entry(study.start(depth), 0)]}}
            for name, row in ROWS.items():
                runs = {seed: study.run(name, depth, seed) for seed in SEEDS}
                seeds = [seed_entry(run, seed) for seed, run in runs.items() if (run / SCORES_FILE).exists()]
                if seeds:
                    rows[name] = {"settings": settings_of(row, study), "seeds": seeds}
            trained[depth] = rows
        before = result["tasks"].get(study.task.name)
        result["tasks"][study.task.name] = merged_task(facts, study.teacher, trained, before)
    write_result_to(output, result)


@contextlib.contextmanager
def claimed(run: Path) -> Iterator[bool]:
    """Whether this process has a run to itself; a worker that dies gives it back."""
    with run.with_suffix(".job").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def work(studies: list[Study], jobs: list[Job]) -> int:
    """Trains and scores every job that is not done and that no other worker has in hand; the number that failed."""
    by_name = {study.task.name: study for study in studies}
    judges: dict[str, Judge] = {}
    failed = 0
    while jobs:
        waiting: list[Job] = []
        for job in jobs:
            task, row, depth, seed = job
            study = by_name[task]
            run = study.run(row, depth, seed)
            with claimed(run) as mine:
                if not mine or (run / SCORES_FILE).exists():
                    continue
                try:
                    if not ready(study, row, depth, seed):
                        waiting.append(job)
                        continue
                    train_row(study, row, depth, seed)
                    if task not in judges:
                        judges[task] = Judge(study)
                    judges[task].judge(run)
                except Exception:
                    # One row's fault must not cost the others a night.
                    traceback.print_exc()
                    failed += 1
        if waiting == jobs:
            time.sleep(WAIT_SECONDS)
        jobs = waiting
    return failed


def ready(study: Study, row: str, depth: int, seed: int) -> bool:
    """Whether the runs whose times this one needs are done.

    Raises:
        RuntimeError: One of them is not, and no worker has it in hand.
    """
    for run in timed_after(study, row, depth, seed):
        if not (run / SECONDS_FILE).exists():
            with claimed(run) as nobody_has_it:
                if nobody_has_it and not (run / SECONDS_FILE).exists():
                    raise RuntimeError(f"{run.name} must be trained first")
            return False
    return True


def start_workers(options: argparse.Namespace) -> None:
    """Runs `--workers` processes over the same jobs."""
    command = [sys.executable, *sys.argv, "--trained", "--workers", "0"]
    workers = []
    for number in range(options.workers):
        log = (options.output / f"worker-{'-'.join(options.tasks)}-{number}.log").open("w")
        workers.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT))
    failed = [number for number, worker in enumerate(workers) if worker.wait()]
    if failed:
        sys.exit(f"workers {failed} failed: see their logs in {options.output}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", nargs="*", choices=[*TASKS], default=[*TASKS])
    parser.add_argument("--rows", nargs="*", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--depths", type=int, nargs="*", default=list(DEPTHS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--scale", choices=[*SCALES], default="study")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="runs side by side; 0: all in this process")
    parser.add_argument("--prepare", action="store_true", help="make teachers, answers and starts, and nothing else")
    parser.add_argument("--trained", action="store_true", help="the preparation is done already")
    parser.add_argument("--collect", action="store_true", help="add to the result file and nothing else")
    parser.add_argument("--result", type=Path, default=RESULTS / "students.json")
    options = parser.parse_args()
    scale = SCALES[options.scale]
    studies = [Study(StudyFolder(options.output / name), TASKS[name], scale, options.device) for name in options.tasks]
    if options.collect:
        return collect(studies, options.result)
    if not options.trained:
        for study in studies:
            prepare(study, options.depths)
    if options.prepare:
        return
    if options.workers:
        return start_workers(options)
    # Seed by seed, so that a study cut short has all rows; the slow ones first: no worker is left with one at the end.
    rows = sorted(options.rows, key=lambda row: list(SLOW_FIRST).index(row) if row in SLOW_FIRST else len(SLOW_FIRST))
    jobs = [
        (study.task.name, row, depth, seed)
        for depth in options.depths
        for seed in options.seeds
        for row in rows
        for study in studies
    ]
    if work(studies, jobs):
        sys.exit("some runs failed: see above")


if __name__ == "__main__":
    main()
