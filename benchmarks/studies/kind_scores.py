"""Predicted tokens per target call of the drafts of `kinds.py`, on greedy answers to held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.kind_rows import Task
from benchmarks.studies.scores import answers_once, size_of
from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.evaluation.acceptance import HiddenCache, predicted_tau, score
from specdistill.evaluation.statistics import paired_difference, ratio
from specdistill.files.atomic import write_text
from specdistill.models import load_model, load_pair
from specdistill.progress import Quiet

LONGEST = 12
Sums = dict[int, np.ndarray]
"""Draft length -> tokens and expected rounds of each answer, [2, prompts]."""
GREEDY = Sampling(temperature=0.0)


class TokensPerCall:
    """Scores drafts on greedy answers, which the target writes once."""

    def __init__(self, task: Task, answers: Path) -> None:
        self._task, self._target = task, load_model(task.target)
        prompts = load_prompts(str(task.heldout))
        encoded = [encode(prompt, self._target.tokenizer) for prompt in prompts]
        self._answers = answers_once(
            answers,
            prompts,
            encoded,
            lambda: write_answers(self._target, prompts, encoded, GREEDY, task.max_new_tokens, 0, Quiet()),
        )
        self._states: HiddenCache = {}

    @property
    def size(self) -> dict[str, int]:
        """Prompts and tokens that the numbers are of."""
        return size_of(self._answers)

    def score_once(self, run: Path) -> Sums:
        """Scores one draft; reads the scores where they exist."""
        file = run / "tokens_per_call.json"
        if not file.exists():
            draft = load_pair(self._task.target, str(run), say=lambda text: None).draft
            depths = LONGEST if draft.guesses_by_start else 1
            records = score(self._target, draft, self._answers, GREEDY, depths=depths, target_cache=self._states)
            lengths = range(1, LONGEST + 1)
            sums = {k: [column.tolist() for column in predicted_tau(records, "greedy", k)] for k in lengths}
            write_text(file, json.dumps(sums))
        return {int(length): np.array(columns) for length, columns in json.loads(file.read_text()).items()}


def tokens_per_call(seeds: Sequence[Sums]) -> dict[str, Any]:
    """Draft length -> tokens per target call of all seeds together, with the interval over prompts, and of each."""
    return {
        str(length): ratio(*_summed(seeds, length)).to_json()
        | {"by_seed": [ratio(*seed[length]).mean for seed in seeds]}
        for length in seeds[0]
    }


def tokens_over(seeds: Sequence[Sums], base: Sequence[Sums], length: int) -> dict[str, Any]:
    """Paired difference over the same seeds of another row."""
    return paired_difference(_summed(seeds, length), _summed(base, length)).to_json()


def _summed(seeds: Sequence[Sums], length: int) -> tuple[np.ndarray, np.ndarray]:
    tokens, rounds = np.sum([seed[length] for seed in seeds], axis=0)
    return tokens, rounds
