"""Alpha of a study's drafts on the target's sampled answers to held-out prompts, and comparisons of it.

Answers and scores are kept in the study's folder: a study goes on for days, and scoring is its slowest reading.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.folders import StudyFolder
from benchmarks.support.special_drafts import with_head_of
from specdistill.data import Example, Prompt, Provenance
from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.evaluation.acceptance import ALPHA_RULES, HiddenCache, alpha_sums, score
from specdistill.evaluation.statistics import paired_difference, ratio
from specdistill.files.atomic import write_text
from specdistill.models import LanguageModel, load_model
from specdistill.progress import Quiet

PromptSums = dict[str, np.ndarray]
"""Rule, or another column -> its sum and number per prompt, of alpha and tokens for a rule; [2, prompts]."""
ANSWERS_SEED = 1234


class Scores:
    """Scores drafts on the target's answers to the held-out prompts, which it writes once, from a seed."""

    def __init__(self, folder: StudyFolder, target: str, max_new_tokens: int) -> None:
        self.target, self.max_new_tokens = load_model(target), max_new_tokens
        self.prompts = load_prompts(str(folder.prompts("heldout")))
        self._encoded = [encode(prompt, self.target.tokenizer) for prompt in self.prompts]
        self.answers = answers_once(
            folder.heldout_answers,
            self.prompts,
            self._encoded,
            lambda: self.write(self.target, Sampling(), ANSWERS_SEED),
        )
        self._states: HiddenCache = {}

    @property
    def size(self) -> dict[str, int]:
        """Prompts and tokens that alpha was measured on."""
        return size_of(self.answers)

    def write(self, model: LanguageModel, sampling: Sampling, seed: int) -> list[Example]:
        """A model's answers to the held-out prompts."""
        return write_answers(model, self.prompts, self._encoded, sampling, self.max_new_tokens, seed, Quiet())

    def score_once(self, draft_directory: Path, trimmed: bool = True) -> PromptSums:
        """Scores one draft, with its trimmed head or the whole one; reads the scores where they exist."""
        file = draft_directory / ("alpha.json" if trimmed else "alpha-whole-head.json")
        if not file.exists():
            draft = load_model(str(draft_directory), "draft")
            if not trimmed:
                draft = with_head_of(draft, None)
            records = score(self.target, draft, self.answers, Sampling(), target_cache=self._states)
            sums = {rule: [column.tolist() for column in alpha_sums(records, rule)] for rule in ALPHA_RULES}
            write_text(file, json.dumps(sums))
            print(f"scored {draft_directory.parent.name}/{draft_directory.name}", flush=True)
        return {rule: np.array(sums) for rule, sums in json.loads(file.read_text()).items()}


def answers_once(
    file: Path, prompts: Sequence[Prompt], encoded: Sequence[list[int]], write: Callable[[], Sequence[Example]]
) -> list[Example]:
    """The target's answers to held-out prompts, which are written where the file is missing."""
    if not file.exists():
        write_text(file, json.dumps([list(answer.answer_ids) for answer in write()]))
    return [
        Example(prompt.id, tuple(prompt_ids), tuple(ids), (int(Provenance.TARGET),) * len(ids))
        for prompt, prompt_ids, ids in zip(prompts, encoded, json.loads(file.read_text()), strict=True)
    ]


def size_of(answers: Sequence[Example]) -> dict[str, int]:
    """Prompts and tokens that a result was measured on."""
    return {"heldout_prompts": len(answers), "heldout_tokens": sum(len(answer.answer_ids) for answer in answers)}


def alpha(seeds: Sequence[PromptSums]) -> dict[str, Any]:
    """Rule -> mean alpha of several seeds together, with its interval over prompts."""
    return {rule: ratio(*summed(seeds, rule)).to_json() for rule in ALPHA_RULES}


def alpha_by_seed(seeds: Sequence[PromptSums]) -> dict[str, list[float]]:
    """Rule -> mean alpha of each seed."""
    return {rule: [ratio(*summed([seed], rule)).mean for seed in seeds] for rule in ALPHA_RULES}


def alpha_over(seeds: Sequence[PromptSums], base: Sequence[PromptSums]) -> dict[str, Any]:
    """Rule -> paired difference of alpha over equally many seeds of a base."""
    return {rule: paired_difference(summed(seeds, rule), summed(base, rule)).to_json() for rule in ALPHA_RULES}


def summed(seeds: Sequence[PromptSums], column: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums over seeds, prompt by prompt: prompts are what is resampled."""
    sums, numbers = np.sum([seed[column] for seed in seeds], axis=0)
    return sums, numbers
