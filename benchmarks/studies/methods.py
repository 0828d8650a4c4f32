"""Every training method on one pair, one start, one budget, and drafts of three depths: held-out alpha on SmolLM2.

    python benchmarks/studies/methods.py --output DIR                   (all rows; resumable: finished rows are kept)
    python benchmarks/studies/methods.py --output DIR --rows skd-5 gkd  (only these, e.g. in a second process)
    python benchmarks/studies/methods.py --output DIR --bench           (speed of each depth; nothing else may run)
    python benchmarks/studies/methods.py --output DIR --collect         (compares, writes results/methods.json)

The pair is SmolLM2-135M-Instruct and its 4-layer cut, warmed up for 100 steps of forward KL on the target's answers.
Every row goes on from that draft with the same prompts, steps, answers per step and tokens per answer. The prompts are
the HumanEval problems of at most 200 tokens, because they come with given answers. 48 of them are never trained on, and
alpha is measured on the target's sampled answers to those. The draft that is measured is that of the last step
(`--keep last`). Intervals are paired over these prompts, a row's seeds together.

Rows `depth-N` are cuts of 2, 4 and 8 layers after 120 steps on stored labels (top 64) of the same target's answers.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.bench_runs import METHODS_RUNS
from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.method_rows import BUDGET, DEPTH_ROWS, MAX_NEW_TOKENS, METHOD_ROWS
from benchmarks.studies.method_runs import common_start, prepare, train_row
from benchmarks.studies.runs import bench_once, bench_results
from benchmarks.studies.scores import PromptSums, Scores, alpha, alpha_by_seed, alpha_over
from benchmarks.support.history import read_history
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result

ROWS = [*METHOD_ROWS, *DEPTH_ROWS]


def method_entry(row: str, runs: list[Path], seeds: list[PromptSums], start: PromptSums) -> dict[str, Any]:
    """One method in the result file."""
    last = [read_history(run)[-1] for run in runs]
    rejections = [entry["skd_rejection_rate"] for entry in last if "skd_rejection_rate" in entry]
    return {
        "settings": METHOD_ROWS[row].settings,
        "seeds": len(seeds),
        "tokens_trained": [entry["tokens_seen"] for entry in last],
        "rejection_rate": mean(rejections) if rejections else None,
        "alpha": alpha(seeds),
        "alpha_by_seed": alpha_by_seed(seeds),
        "over_start": alpha_over(seeds, [start] * len(seeds)),
    }


def collect(folder: StudyFolder) -> None:
    """Scores every finished run and writes the result file."""
    scores = Scores(folder, str(target_file()), MAX_NEW_TOKENS)
    start = scores.score_once(common_start(folder))
    runs = {row: folder.finished_runs(row) for row in ROWS}
    seeds = {row: [scores.score_once(run) for run in runs[row]] for row in ROWS if runs[row]}
    # The same stored answers, with the live target's distributions (fkl) or their text only (ce).
    online, offline = zip(*zip(seeds["target-fkl"], seeds["seqkd"], strict=False), strict=True)
    result = {
        "budget": BUDGET,
        **scores.size,
        "torch": torch.__version__,
        "start": alpha([start]),
        "rows": {row: method_entry(row, runs[row], seeds[row], start) for row in METHOD_ROWS if row in seeds},
        "depths": {
            row: {
                "seeds": len(seeds[row]),
                "alpha": alpha(seeds[row]),
                "alpha_by_seed": alpha_by_seed(seeds[row]),
                "alpha_whole_head": alpha([scores.score_once(run, trimmed=False) for run in runs[row]]),
            }
            for row in DEPTH_ROWS
            if row in seeds
        },
        "bench": bench_results(folder, METHODS_RUNS),
        "online_over_offline": alpha_over(online, offline),
    }
    write_result("methods.json", result)
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true", help="score what is trained and write the result file")
    parser.add_argument("--bench", action="store_true", help="measure the speed of each depth, greedy")
    options = parser.parse_args()
    folder = StudyFolder(options.output)
    if options.bench:
        for run in METHODS_RUNS:
            bench_once(folder, str(target_file()), run, MAX_NEW_TOKENS)
        return
    if options.collect:
        return collect(folder)
    prepare(folder)
    for seed in options.seeds:
        for row in options.rows:
            train_row(folder, row, seed)


if __name__ == "__main__":
    main()
