"""Result files of `kinds.py`. Seeds that are not trained here are taken from the file as it was.

A study is longer than some machines are kept. So the file holds every seed's target calls prompt by prompt, and a row
needs no other machine's checkpoints to be compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.studies.kind_rows import LOSS_STEPS, TOKENS
from benchmarks.studies.kind_scores import LONGEST, Rounds
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import load_result, write_result
from specdistill.evaluation.statistics import paired_difference, ratio

Seed = dict[str, Any]


def rounds_text(rounds: Rounds) -> dict[str, str]:
    """Target calls as the file holds them: prompt by prompt, a line per draft length."""
    return {str(length): _text(numbers) for length, numbers in rounds.items()}


def _text(numbers: np.ndarray) -> str:
    return " ".join(f"{number:.10g}" for number in numbers)


def _numbers(text: str) -> np.ndarray:
    return np.array([float(number) for number in text.split()])


def _same_run(old: Seed, new: Seed) -> bool:
    """Whether two trainings gave one draft: by steps, tokens, and target calls where both have them."""
    return all(old[key] == new[key] for key in ("steps", "tokens_trained", "rounds") if key in old)


def merged_seeds(old: list[Seed], new: list[Seed]) -> list[Seed]:
    """Seeds of both; one that was trained again replaces the old one, whose benches stay if it is the same draft."""
    found = {seed["seed"]: seed for seed in old}
    for seed in new:
        before = found.get(seed["seed"])
        found[seed["seed"]] = before | seed if before and _same_run(before, seed) else seed
    return [found[number] for number in sorted(found)]


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
        raise ValueError(f"{name} holds scores of other answers, so these can't stand beside them; move it away first")
    # The first token of an answer comes with the prompt's pass.
    drafted = answer_tokens - 1
    merged: dict[str, Any] = dict(old["rows"])
    for row, new in rows.items():
        before = merged.get(row, {"seeds": []})
        merged[row] = new | {"seeds": merged_seeds(before["seeds"], new["seeds"])}
        calls = _tokens_per_call(drafted, merged[row]["seeds"])
        known = before.get("tokens_per_call", calls)
        more = len(calls["8"]["by_seed"]) >= len(known["8"]["by_seed"])
        merged[row]["tokens_per_call"] = calls if more else known
    for row, entry in merged.items():
        if row != "loss-fkl" and "loss-fkl" in merged and entry["steps"] == LOSS_STEPS:
            entry["over_fkl"] = _over(drafted, entry["seeds"], merged["loss-fkl"]["seeds"])
    write_result(name, {"tokens": TOKENS, **size, "answer_tokens": _text(answer_tokens), "rows": merged})


def _tokens_per_call(drafted: np.ndarray, seeds: list[Seed]) -> dict[str, Any]:
    """Draft length -> tokens per target call of all seeds that have theirs, with the interval over prompts."""
    found = {}
    for length in map(str, range(1, LONGEST + 1)):
        rounds = [_numbers(seed["rounds"][length]) for seed in seeds if "rounds" in seed]
        together = ratio(drafted * len(rounds), np.sum(rounds, axis=0)).to_json()
        found[length] = together | {"by_seed": [ratio(drafted, one).mean for one in rounds]}
    return found


def _over(drafted: np.ndarray, seeds: list[Seed], base: list[Seed]) -> dict[str, Any]:
    """Tokens per call at K minus those of another row, over the seeds that both have."""
    own, others = ({seed["seed"]: _numbers(seed["rounds"][str(TOKENS)]) for seed in side} for side in (seeds, base))
    both = [number for number in own if number in others]
    sums = [(drafted * len(both), np.sum([side[number] for number in both], axis=0)) for side in (own, others)]
    return paired_difference(*sums).to_json() | {"seeds": len(both)}
