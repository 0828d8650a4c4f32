"""Expected target calls with the drafts of `kinds.py`, on greedy answers to held-out prompts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.studies.kind_rows import Task
from benchmarks.studies.scores import answers_once, size_of
from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.evaluation.acceptance import PromptAcceptance, predicted_tau, score, score_draft
from specdistill.files.atomic import write_text
from specdistill.models import LanguageModel, load_model, load_pair
from specdistill.models.head_draft import HeadModel
from specdistill.progress import Quiet

LONGEST = 12
Rounds = dict[int, np.ndarray]
"""Draft length -> expected target calls of each answer, [prompts]."""
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

    @property
    def size(self) -> dict[str, int]:
        """Prompts and tokens that the numbers are of."""
        return size_of(self._answers)

    @property
    def answer_tokens(self) -> np.ndarray:
        """Tokens of each answer, [prompts]."""
        return np.array([len(answer.answer_ids) for answer in self._answers])

    def score_once(self, run: Path, longest: int) -> Rounds:
        """Scores one draft for lengths up to `longest`; reads the scores where they exist."""
        file = run / "rounds.json"
        if not file.exists():
            draft = load_pair(self._task.target, str(run), say=lambda text: None).draft
            records = self._records(draft, longest)
            rounds = {length: predicted_tau(records, "greedy", length)[1].tolist() for length in range(1, longest + 1)}
            write_text(file, json.dumps(rounds))
        return {int(length): np.array(rounds) for length, rounds in json.loads(file.read_text()).items()}

    def _records(self, draft: LanguageModel, depths: int) -> list[PromptAcceptance]:
        if isinstance(draft, HeadModel):
            return score(self._target, draft, self._answers, GREEDY, depths=depths)
        # The answers are the target's argmax, so its distributions would add nothing.
        return score_draft(draft, self._answers, greedy=True, depths=depths)
