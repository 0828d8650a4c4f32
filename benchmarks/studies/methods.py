"""Every training method on one pair, one start, one budget, and drafts of three depths: held-out alpha on SmolLM2.

    python benchmarks/methods.py --output DIR                    (all rows; resumable: finished rows are kept)
    python benchmarks/methods.py --output DIR --rows skd-5 gkd   (only these, e.g. in a second process)
    python benchmarks/methods.py --output DIR --bench            (speed of each depth; nothing else may run meanwhile)
    python benchmarks/methods.py --output DIR --collect          (compare all, write benchmarks/results/methods.json)

The pair is SmolLM2-135M-Instruct and its 4-layer cut, warmed up for 100 steps of forward KL on the target's answers.
Every row goes on from that draft with the same prompts, steps, answers per step and tokens per answer. The prompts are
the HumanEval problems of at most 200 tokens, because they come with given answers; 48 are never trained on, and the
target's sampled answers to those are what alpha is measured on. What is measured is the draft of the last step, also
where train-draft kept the start because it was better. Intervals are paired over these prompts, a row's seeds together.

Rows `depth-N` are cuts of 2, 4 and 8 layers after 120 steps on stored labels (top 64) of the same target's answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from smollm2 import RESULTS, run, target_file
from study_scores import Scores, alpha, alpha_by_seed, bench_draft, bench_reports, finished, over
from transformers import TrainerCallback

from specdistill import AnnotateConfig, GenerateConfig, TrainConfig, annotate, generate, train_draft
from specdistill.data.prompts import encode, load_prompts, split_prompts
from specdistill.distill.train_draft import SUMMARY_FILE
from specdistill.models import load_model
from specdistill.report.progress import TerminalProgress

HELDOUT, MAX_PROMPT, MAX_NEW = 48, 200, 48
ALIKE = {"max_new_tokens": MAX_NEW, "batch_size": 4, "patience": 0, "heldout_prompts": 8}
BUDGET = ALIKE | {"steps": 60, "eval_every": 60}
ROWS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "seqkd": {"method": "seqkd"},
    "supervised-kd": {"method": "supervised-kd"},
    "target-fkl": {"method": "distillspec", "target_fraction": 1.0},
    "gkd": {"method": "gkd"},
    "on-policy-fkl": {"method": "distillspec", "target_fraction": 0.0},
    **{
        f"distillspec-{kind}": {"method": "distillspec", "divergence": kind}
        for kind in ("fkl", "rkl", "jsd", "tvd", "lk_lambda", "lk_argmax")
    },
    **{f"skd-{top_k}": {"method": "skd", "skd_top_k": top_k} for top_k in (5, 25, 100)},
}
DEPTHS = {f"depth-{layers}": layers for layers in (2, 4, 8)}
DEPTH_BUDGET = ALIKE | {"method": "distillspec", "target_fraction": 1.0, "steps": 120, "eval_every": 40}
TARGET_ANSWERS = ("seqkd", "target-fkl", "distillspec")
"""Rows that begin so train on the same stored answers of the target."""


def prepare(folder: Path) -> None:
    """Prompts, the target's answers, their labels, and the common start; each only where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    target = str(target_file())
    if not (folder / "heldout.jsonl").exists():
        tokenizer = load_model(target).tokenizer
        short = [prompt for prompt in load_prompts("humaneval") if len(encode(prompt, tokenizer)) <= MAX_PROMPT]
        for name, prompts in zip(("train", "heldout"), split_prompts(short, HELDOUT), strict=True):
            records = [{"id": each.id, "messages": each.messages, "answer": each.answer} for each in prompts]
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    cut(folder, "cut", 4)
    generate(
        GenerateConfig.flat(
            target=target,
            output=str(folder / "answers"),
            prompts=str(folder / "train.jsonl"),
            rollouts_per_prompt=2,
            max_new_tokens=MAX_NEW,
        ),
        TerminalProgress(),
    )
    label(folder, "top-64")
    warmup = ALIKE | {"method": "distillspec", "target_fraction": 1.0, "steps": 100, "eval_every": 50}
    distil(folder, "cut", "start", warmup | {"rollouts": str(folder / "answers")})


def cut(folder: Path, name: str, layers: int) -> None:
    if not (folder / name / "model.safetensors").exists():
        place = ["--output", str(folder / name), "--layers", str(layers), "--vocab-keep", "8192", "--choose", "even"]
        prompts = ["--prompts", str(folder / "train.jsonl"), "--calibration-tokens", "32"]
        run("init-draft", "--target", str(target_file()), *place, *prompts)


class SaveLast(TrainerCallback):
    """Keeps the draft of the last step: train-draft itself keeps the best, which may be the one it started from."""

    def __init__(self, start: Path, output: Path) -> None:
        self._start, self._output = start, output

    def on_train_end(self, args, state, control, model=None, **kwargs) -> None:
        assert model is not None
        model.save_pretrained(self._output / "last")
        for pattern in ("*token*", "chat_template*", "draft_vocabulary.json"):
            for file in self._start.glob(pattern):
                shutil.copyfile(file, self._output / "last" / file.name)


def distil_into(output: Path, start: Path, settings: dict[str, Any]) -> None:
    """Trains `start` as the settings of `TrainConfig` say, on one thread; a finished run is left as it is."""
    if (output / SUMMARY_FILE).exists():
        return
    print(f"\n{output.name}: {settings}", flush=True)
    config = TrainConfig.flat(draft=str(start), output=str(output), resume=True, threads=1, **settings)
    train_draft(config, TerminalProgress(), [SaveLast(start, output)])


def distil(folder: Path, start: str, name: str, settings: dict[str, Any]) -> None:
    pair = {"target": str(target_file()), "prompts": str(folder / "train.jsonl")}
    distil_into(folder / name, folder / start, pair | settings)


def label(folder: Path, row: str) -> dict[str, Any]:
    """Annotates the target's answers as a row's name says (`top-64`, `drawn-16`), in `labels/ROW`; what it cost."""
    kind, _, number = row.partition("-")
    labels = {"labels": "top-k", "top_k": int(number)} if kind == "top" else {"labels": "sampled", "draws": int(number)}
    output = folder / "labels" / row
    found = {"target": str(target_file()), "output": str(output), "rollouts": str(folder / "answers"), "threads": 1}
    return annotate(AnnotateConfig.flat(**found, **labels), TerminalProgress())


def train(folder: Path, row: str, seed: int) -> None:
    name = f"{row}-seed{seed}"
    if row in DEPTHS:
        start = f"cut-{DEPTHS[row]}"
        cut(folder, start, DEPTHS[row])
        stored = {"soft_labels": str(folder / "labels" / "top-64")}
        return distil(folder, start, name, DEPTH_BUDGET | stored | {"seed": seed})
    stored = {"rollouts": str(folder / "answers")} if row.startswith(TARGET_ANSWERS) else {}
    distil(folder, "start", name, ROWS[row] | BUDGET | stored | {"seed": seed})


def collect(folder: Path) -> None:
    scores = Scores(folder, str(target_file()), MAX_NEW)
    start = scores.of(folder / "start")
    runs = {row: finished(folder, row) for row in (*ROWS, *DEPTHS)}
    found = {row: [scores.of(place / "last") for place in places] for row, places in runs.items() if places}

    def entry(row: str) -> dict:
        last = [json.loads((place / "history.jsonl").read_text().splitlines()[-1]) for place in runs[row]]
        replaced = [each["skd_rejection_rate"] for each in last if "skd_rejection_rate" in each]
        return {
            "settings": ROWS[row],
            "seeds": len(found[row]),
            "tokens_trained": [each["tokens_seen"] for each in last],
            "rejection_rate": mean(replaced) if replaced else None,
            "alpha": alpha(found[row]),
            "alpha_by_seed": alpha_by_seed(found[row]),
            "over_start": over(found[row], [start] * len(found[row])),
        }

    online, offline = zip(*zip(found["target-fkl"], found["seqkd"], strict=False), strict=True)
    result = {
        "budget": BUDGET,
        **scores.size,
        "torch": torch.__version__,
        "start": alpha([start]),
        "rows": {row: entry(row) for row in ROWS if row in found},
        "depths": {
            row: {
                "seeds": len(found[row]),
                "alpha": alpha(found[row]),
                "alpha_by_seed": alpha_by_seed(found[row]),
                "alpha_whole_head": alpha([scores.of(place / "last", trimmed=False) for place in runs[row]]),
            }
            for row in DEPTHS
            if row in found
        },
        "bench": bench_reports(folder),
        # The same stored answers, with the live target's distributions (fkl) or their text only (ce).
        "online_over_offline": over(online, offline),
    }
    (RESULTS / "methods.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def bench(folder: Path) -> None:
    """Speed of each depth, greedy."""
    for row in DEPTHS:
        bench_draft(folder, str(target_file()), row, "none", 0, MAX_NEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rows", nargs="*", choices=[*ROWS, *DEPTHS], default=[*ROWS, *DEPTHS])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--collect", action="store_true")
    parser.add_argument("--bench", action="store_true")
    options = parser.parse_args()
    if options.bench:
        return bench(options.output)
    if options.collect:
        return collect(options.output)
    prepare(options.output)
    for seed in options.seeds:
        for row in options.rows:
            train(options.output, row, seed)


if __name__ == "__main__":
    main()
