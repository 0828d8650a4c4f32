"""Preparation and training of the rows of `methods.py`, which `soft_labels.py` goes on from. Each part is made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.studies.folders import StudyFolder
from benchmarks.studies.labels import LabelKind, StoredLabels, label_once
from benchmarks.studies.method_rows import BUDGET, DEPTH_BUDGET, DEPTH_ROWS, MAX_NEW_TOKENS, METHOD_ROWS, WARMUP
from benchmarks.studies.runs import cut_once, train_once
from benchmarks.support.paths import target_file
from specdistill import GenerateConfig, generate
from specdistill.data.prompts import encode, load_prompts, split_prompts
from specdistill.models import load_model
from specdistill.report.progress import TerminalProgress

HELDOUT_PROMPTS, MAX_PROMPT_TOKENS = 48, 200
DEPTH_LABELS = StoredLabels(LabelKind.TOP, 64)


def common_start(folder: StudyFolder) -> Path:
    """The warmed-up draft from which every method goes on, with the tokenizer and vocabulary of its cut."""
    return folder.root / "start"


def prepare(folder: StudyFolder) -> None:
    """Prompts, the target's answers, their labels, and the common start; each only where it is missing."""
    prepare_labels(folder)
    cut_draft_once(folder, folder.root / "cut", 4)
    train_from(folder, folder.root / "cut", common_start(folder), **WARMUP, rollouts=str(folder.answers))


def prepare_labels(folder: StudyFolder) -> None:
    """Prompts, the target's answers and their labels."""
    folder.root.mkdir(parents=True, exist_ok=True)
    if not folder.prompts("heldout").exists():
        write_prompts(folder)
    answers = GenerateConfig.flat(
        target=str(target_file()),
        output=str(folder.answers),
        prompts=str(folder.prompts("train")),
        rollouts_per_prompt=2,
        max_new_tokens=MAX_NEW_TOKENS,
    )
    generate(answers, TerminalProgress())
    label_once(folder, DEPTH_LABELS)


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
