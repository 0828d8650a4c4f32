"""Result file of `students.py`: rows seed by seed, means with intervals, and differences from the start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.scores import PromptSums, summed
from benchmarks.studies.seed_results import Seed, merged_seeds, numbers_of, text_of
from specdistill.evaluation.statistics import paired_difference, ratio

SECONDS_FILE = "seconds.json"
"""Seconds that the training of a model took."""
SCORES_FILE = "scores.json"
"""Scores of a model's answers and sums of alpha, prompt by prompt."""


def seed_entry(model: Path, seed: int) -> Seed:
    """The scores beside a model, as the file holds them."""
    stored, seconds = json.loads((model / SCORES_FILE).read_text()), model / SECONDS_FILE
    return {
        "seed": seed,
        **({"seconds": round(json.loads(seconds.read_text()), 1)} if seconds.exists() else {}),
        "scores": {name: text_of(values) for name, values in stored["scores"].items()},
        "alpha": {rule: text_of(sums) for rule, (sums, _) in stored["alpha"].items()},
    }


def merged_task(
    facts: dict[str, Any], teacher: Path, trained: dict[int, dict[str, Any]], before: dict[str, Any] | None
) -> dict[str, Any]:
    """A task of the result: what is trained here, and what the file has beside it.

    Args:
        facts: Facts of the study.
        teacher: The scored teacher.
        trained: Depth -> row -> its settings and the seeds that are trained here.
        before: The task as the file has it.

    Raises:
        ValueError: The file's numbers are of another teacher's answers.
    """
    stored = json.loads((teacher / SCORES_FILE).read_text())
    tokens = np.array(next(iter(stored["alpha"].values()))[1])
    known = {} if before is None else before
    if known and known["alpha_tokens"] != text_of(tokens):
        raise ValueError(
            "the result holds scores on other answers, so these can't stand beside them; move it away first"
        )
    task = known | facts | {"alpha_tokens": text_of(tokens), "teacher": _row([seed_entry(teacher, 0)], tokens, None)}
    for depth, rows in trained.items():
        title = f"students of {depth} layers"
        merged = dict(known.get(title, {}))
        for name, row in rows.items():
            old = merged.get(name, {"seeds": []})["seeds"]
            seeds = merged_seeds(old, row["seeds"], ("scores", "alpha"))
            start = None if name == "start" else merged["start"]["seeds"]
            merged[name] = {key: value for key, value in row.items() if key != "seeds"} | _row(seeds, tokens, start)
        task[title] = merged
    return task


def _row(seeds: list[Seed], tokens: np.ndarray, start: list[Seed] | None) -> dict[str, Any]:
    """Means with intervals, seed by seed, and over the start."""
    columns = [_columns(seed, tokens) for seed in seeds]
    found: dict[str, Any] = {"mean": {}, "by_seed": {}, "over_start": {}}
    for name in columns[0]:
        together = summed(columns, name)
        found["mean"][name] = ratio(*together).to_json()
        found["by_seed"][name] = [ratio(*one[name]).mean for one in columns]
        if start is not None:
            base = summed([_columns(start[0], tokens)], name)
            found["over_start"][name] = paired_difference(together, base).to_json()
    return {name: value for name, value in found.items() if value} | {"seeds": seeds}


def _columns(seed: Seed, tokens: np.ndarray) -> PromptSums:
    scores = {name: numbers_of(text) for name, text in seed["scores"].items()}
    alpha = {f"alpha, {rule}": np.array([numbers_of(text), tokens]) for rule, text in seed["alpha"].items()}
    return {name: np.array([values, np.ones(len(values))]) for name, values in scores.items()} | alpha
