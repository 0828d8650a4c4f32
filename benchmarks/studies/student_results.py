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
SAME_DRAFT = ("scores", "alpha")
"""Facts that two trainings of one draft share."""


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
        task[title] = _merged_depth(known.get(title, {}), rows, tokens)
    return task


def _merged_depth(known: dict[str, Any], rows: dict[str, Any], tokens: np.ndarray) -> dict[str, Any]:
    """Rows of one depth. Each seed is compared with its own start: another machine may have trained its own again."""
    (own,) = rows["start"]["seeds"]
    starts = {start["seed"]: start for start in known.get("start", {"seeds": []})["seeds"]}
    same = [number for number, start in starts.items() if all(start[key] == own[key] for key in SAME_DRAFT)]
    here = same[0] if same else max(starts, default=-1) + 1
    starts[here] = starts.get(here, {}) | own | {"seed": here}
    merged = dict(known)
    for name in [name for name in rows if name != "start"]:
        old = merged.get(name, {"seeds": []})["seeds"]
        seeds = merged_seeds(old, [seed | {"start": here} for seed in rows[name]["seeds"]], SAME_DRAFT)
        merged[name] = {key: value for key, value in rows[name].items() if key != "seeds"}
        merged[name] |= _row(seeds, tokens, starts)
    others = [row["seeds"] for name, row in merged.items() if name != "start"]
    used = {here} | {_start_of(seed) for seeds in others for seed in seeds}
    merged["start"] = _row([starts[number] for number in sorted(used)], tokens, None)
    return merged


def _start_of(seed: Seed) -> int:
    """Number of the start that a seed went on from; files of one start don't name it."""
    return seed.get("start", 0)


def _row(seeds: list[Seed], tokens: np.ndarray, starts: dict[int, Seed] | None) -> dict[str, Any]:
    """Means with intervals, seed by seed, and over the seeds' starts, by number."""
    columns = [_columns(seed, tokens) for seed in seeds]
    found: dict[str, Any] = {"mean": {}, "by_seed": {}, "over_start": {}}
    for name in columns[0]:
        together = summed(columns, name)
        found["mean"][name] = ratio(*together).to_json()
        found["by_seed"][name] = [ratio(*one[name]).mean for one in columns]
        if starts is not None:
            base = summed([_columns(starts[_start_of(seed)], tokens) for seed in seeds], name)
            found["over_start"][name] = paired_difference(together, base).to_json()
    return {name: value for name, value in found.items() if value} | {"seeds": seeds}


def _columns(seed: Seed, tokens: np.ndarray) -> PromptSums:
    scores = {name: numbers_of(text) for name, text in seed["scores"].items()}
    alpha = {f"alpha, {rule}": np.array([numbers_of(text), tokens]) for rule, text in seed["alpha"].items()}
    return {name: np.array([values, np.ones(len(values))]) for name, values in scores.items()} | alpha
