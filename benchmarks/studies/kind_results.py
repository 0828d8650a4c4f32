"""Result files of `kinds.py`. Seeds that are not trained here are taken from the file as it was."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.studies.kind_rows import LOSS_STEPS, TOKENS
from benchmarks.studies.kind_scores import Rounds
from benchmarks.studies.seed_results import Seed, merged_seeds, numbers_of, text_of
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import load_result, write_result
from specdistill.evaluation.statistics import paired_difference, ratio

SAME_DRAFT = ("steps", "tokens_trained", "rounds")
"""Facts that two trainings of one draft share."""


def rounds_text(rounds: Rounds) -> dict[str, str]:
    """Target calls as the file holds them: a line per draft length."""
    return {str(length): text_of(numbers) for length, numbers in rounds.items()}


def write_merged(task: str, size: dict[str, int], answer_tokens: np.ndarray, rows: dict[str, dict[str, Any]]) -> None:
    """Writes what is trained here, and what the file has beside it.

    Args:
        task: Name of the task.
        size: Held-out prompts and tokens.
        answer_tokens: Tokens of each held-out answer, [prompts].
        rows: Row -> its facts and `seeds`, of those trained here.

    Raises:
        ValueError: The file's numbers are of other answers.
    """
    name = f"kinds_{task}.json"
    old: dict[str, Any] = load_result(name) if (RESULTS / name).exists() else size | {"rows": {}}
    if any(old[key] != value for key, value in size.items()):
        raise ValueError(f"{name} is of other answers of the target; move it away first")
    # The first token of an answer comes with the prompt's pass.
    drafted = answer_tokens - 1
    merged: dict[str, Any] = dict(old["rows"])
    for row, new in rows.items():
        before = merged.get(row, {"seeds": []})
        merged[row] = new | {"seeds": merged_seeds(before["seeds"], new["seeds"], SAME_DRAFT)}
        calls = _tokens_per_call(drafted, merged[row]["seeds"])
        known = before.get("tokens_per_call", calls)
        # Seeds of older files have no target calls.
        more = len(calls["1"]["by_seed"]) >= len(known["1"]["by_seed"])
        merged[row]["tokens_per_call"] = calls if more else known
    for row, entry in merged.items():
        if row != "loss-fkl" and "loss-fkl" in merged and entry["steps"] == LOSS_STEPS:
            over = _over(drafted, entry["seeds"], merged["loss-fkl"]["seeds"])
            # What is left out here is no longer of the seeds that stand beside it.
            merged[row] = {key: value for key, value in entry.items() if key != "over_fkl"} | over
    write_result(name, {"tokens": TOKENS, **size, "answer_tokens": text_of(answer_tokens), "rows": merged})


def _tokens_per_call(drafted: np.ndarray, seeds: list[Seed]) -> dict[str, Any]:
    """Draft length -> tokens per target call of all seeds that have theirs, with the interval over prompts."""
    found, scored = {}, [seed["rounds"] for seed in seeds if "rounds" in seed]
    for length in scored[0]:
        rounds = [numbers_of(one[length]) for one in scored]
        together = ratio(drafted * len(rounds), np.sum(rounds, axis=0)).to_json()
        found[length] = together | {"by_seed": [ratio(drafted, one).mean for one in rounds]}
    return found


def _over(drafted: np.ndarray, seeds: list[Seed], base: list[Seed]) -> dict[str, Any]:
    """`over_fkl`: tokens per call at K minus those of another row, over the seeds that both have; {} without any."""
    own, others = (
        {seed["seed"]: numbers_of(seed["rounds"][str(TOKENS)]) for seed in side if "rounds" in seed}
        for side in (seeds, base)
    )
    both = [number for number in own if number in others]
    if not both:
        return {}
    sums = [(drafted * len(both), np.sum([side[number] for number in both], axis=0)) for side in (own, others)]
    return {"over_fkl": paired_difference(*sums).to_json() | {"seeds": len(both)}}
