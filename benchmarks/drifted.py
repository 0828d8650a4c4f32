"""A drifted target: SmolLM2-135M-Instruct fine-tuned on one narrow job."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from methods import SaveLast
from service_mail import records
from smollm2 import run, target_file

from specdistill import GenerateConfig, TrainConfig, generate, train_draft
from specdistill.distill.train_draft import SUMMARY_FILE
from specdistill.models.gguf import convert
from specdistill.report.progress import TerminalProgress

MAX_NEW = 160


def write_mails(folder: Path) -> None:
    for name, count, seed in (("finetuning", 976, 1), ("train", 520, 2), ("heldout", 64, 3)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(each) + "\n" for each in records(count, seed)))


def fine_tune(folder: Path) -> None:
    if (folder / "target" / "config.json").exists():
        return
    config = TrainConfig(
        target=str(target_file()),
        draft=str(target_file()),
        output=str(folder / "finetuning"),
        method="sft",
        prompts=str(folder / "finetuning.jsonl"),
        max_new_tokens=MAX_NEW,
        batch_size=8,
        steps=120,
        eval_every=60,
        patience=0,
        learning_rate=2e-4,
        heldout_prompts=8,
        resume=True,
        threads=1,
    )
    train_draft(config, TerminalProgress(), [SaveLast(convert(target_file()), folder / "finetuning")])
    shutil.move(folder / "finetuning" / "last", folder / "target")


def write_answers(folder: Path) -> None:
    generate(
        GenerateConfig(
            target=str(folder / "target"),
            output=str(folder / "answers"),
            prompts=str(folder / "train.jsonl"),
            rollouts_per_prompt=1,
            max_new_tokens=MAX_NEW,
            threads=1,
        ),
        TerminalProgress(),
    )


def cut(folder: Path, layers: int) -> None:
    if not (folder / f"cut-{layers}" / "model.safetensors").exists():
        place = ["--output", str(folder / f"cut-{layers}"), "--layers", str(layers), "--vocab-keep", "8192"]
        calibration = ["--calibration-prompts", "24", "--calibration-tokens", "96", "--threads", "1"]
        prompts = ["--prompts", str(folder / "train.jsonl")]
        run("init-draft", "--target", str(folder / "target"), *place, *calibration, *prompts, "--choose", "even")


def distil(folder: Path, layers: int, seed: int, steps: int) -> None:
    name = f"fkl-{layers}-seed{seed}"
    if (folder / name / SUMMARY_FILE).exists():
        return
    config = TrainConfig(
        target=str(folder / "target"),
        draft=str(folder / f"cut-{layers}"),
        output=str(folder / name),
        prompts=str(folder / "train.jsonl"),
        method="distillspec",
        target_fraction=1.0,
        rollouts=str(folder / "answers"),
        max_new_tokens=MAX_NEW,
        batch_size=8,
        steps=steps,
        eval_every=40,
        patience=0,
        heldout_prompts=16,
        rule="greedy",
        resume=True,
        threads=1,
        seed=seed,
    )
    train_draft(config, TerminalProgress())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=240)
    options = parser.parse_args()
    write_mails(options.output)
    fine_tune(options.output)
    write_answers(options.output)
    cut(options.output, options.layers)
    distil(options.output, options.layers, 0, options.steps)
