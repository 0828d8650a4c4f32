"""Every training method on one pair, one start, one budget, and drafts of three depths: held-out alpha on SmolLM2.

    python benchmarks/studies/methods.py --output DIR                   (all rows; resumable: finished rows are kept)
    python benchmarks/studies/methods.py --output DIR --rows skd-5 gkd  (only these, e.g. in a second process)
    python benchmarks/studies/methods.py --output DIR --bench           (speed of each depth; nothing else may run)
    python benchmarks/studies/methods.py --output DIR --collect         (compares, writes results/methods.json)

The pair is SmolLM2-135M-Instruct and its 4-layer cut, warmed up for 100 steps of forward KL on the target's answers.
Every row goes on from that draft with the same prompts, steps, answers per step and tokens per answer. The prompts are
the HumanEval problems of at most 200 tokens, because they come with given answers. 48 of them are never trained on, and
alpha is measured on the target's sampled answers to those. The draft that is measured is that of the last step, also
where train-draft kept the start because it was better. Intervals are paired over these prompts, a row's seeds together.

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
from benchmarks.studies.folders import StudyFolder, last_step
from benchmarks.studies.labels import LabelKind, StoredLabels, label_once
from benchmarks.studies.method_rows import BUDGET, DEPTH_BUDGET, DEPTH_ROWS, MAX_NEW_TOKENS, METHOD_ROWS, WARMUP
from benchmarks.studies.runs import bench_once, bench_results, cut_once, train_once
from benchmarks.studies.scores import PromptSums, Scores, alpha, alpha_by_seed, alpha_over
from benchmarks.support.history import read_history
from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill import GenerateConfig, generate
from specdistill.data.prompts import encode, load_prompts, split_prompts
from specdistill.models import load_model
from specdistill.report.progress import TerminalProgress

HELDOUT_PROMPTS, MAX_PROMPT_TOKENS = 48, 200
ROWS = [*METHOD_ROWS, *DEPTH_ROWS]
DEPTH_LABELS = StoredLabels(LabelKind.TOP, 64)


def common_start(folder: StudyFolder) -> Path:
    """The warmed-up draft from which every method goes on, with the tokenizer and vocabulary of its cut."""
    return folder.root / "start"


def prepare(folder: StudyFolder) -> None:
    """Prompts, the target's answers, their labels, and the common start; each only where it is missing."""
    folder.root.mkdir(parents=True, exist_ok=True)
    if not folder.prompts("heldout").exists():
        write_prompts(folder)
    cut_draft_once(folder, folder.root / "cut", 4)
    answers = GenerateConfig.flat(
        target=str(target_file()),
        output=str(folder.answers),
        prompts=str(folder.prompts("train")),
        rollouts_per_prompt=2,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    generate(answers, TerminalProgress())
    label_once(folder, DEPTH_LABELS)
    train_from(folder, folder.root / "cut", common_start(folder), **WARMUP, rollouts=str(folder.answers))


def write_prompts(folder: StudyFolder) -> None:
    """The short HumanEval problems, in a training and a held-out part."""
    tokenizer = load_model(str(target_file())).tokenizer
    short = [prompt for prompt in load_prompts("humaneval") if len(encode(prompt, tokenizer)) <= MAX_PROMPT_TOKENS]
    for name, prompts in zip(("train", "heldout"), split_prompts(short, HELDOUT_PROMPTS), strict=True):
        records = [{"id": prompt.id, "messages": prompt.messages, "answer": prompt.answer} for prompt in prompts]
        folder.prompts(name).write_text("".join(json.dumps(record) + "\n" for record in records))


def cut_draft_once(folder: StudyFolder, output: Path, layers: int) -> None:
    calibration = ["--prompts", str(folder.prompts("train")), "--calibration-tokens", "32"]
    cut_once(str(target_file()), output, "--layers", str(layers), *calibration)


def train_from(folder: StudyFolder, start: Path, run: Path, **settings: Any) -> None:
    """Trains a draft of SmolLM2 on the training prompts; leaves a finished run as it is."""
    train_once(run, start, target=str(target_file()), prompts=str(folder.prompts("train")), **settings)


def train_row(folder: StudyFolder, row: str, seed: int) -> None:
    """Trains one seed of a row."""
    run = folder.run(row, seed)
    if row in DEPTH_ROWS:
        layers = DEPTH_ROWS[row]
        cut_draft_once(folder, folder.cut(layers), layers)
        labels = str(DEPTH_LABELS.directory(folder))
        return train_from(folder, folder.cut(layers), run, **DEPTH_BUDGET, soft_labels=labels, seed=seed)
    method = METHOD_ROWS[row]
    stored = {"rollouts": str(folder.answers)} if method.reads_target_answers else {}
    train_from(folder, common_start(folder), run, **method.settings, **BUDGET, **stored, seed=seed)


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
    seeds = {row: [scores.score_once(last_step(run)) for run in runs[row]] for row in ROWS if runs[row]}
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
                "alpha_whole_head": alpha([scores.score_once(last_step(run), trimmed=False) for run in runs[row]]),
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
