"""Numbers that say how much choice a target's answers leave, so that two jobs can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from specdistill.data.batch import Example
from specdistill.evaluation.answer_states import HiddenCache, answer_hidden_states
from specdistill.evaluation.baseline_settings import BaselineSettings
from specdistill.evaluation.baselines import ways_of
from specdistill.evaluation.copying_walk import walk
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.overlap import overlap
from specdistill.evaluation.statistics import Estimate, ratio
from specdistill.models import LanguageModel
from specdistill.progress import Progress

ANSWERS, TOKENS, DRAFT_TOKENS = 12, 96, 8
"""Answers and tokens of each that jobs are compared by: suffix decoding copies more the more it has seen."""
_BATCH = 8


@dataclass(frozen=True, kw_only=True)
class AnswerKind:
    """How much choice answers leave, by the first 12 of them and 96 tokens of each."""

    certainty: Estimate
    """Probability that the target gives its likeliest token at temperature 1, a mean over tokens."""
    suffix_tokens_per_call: Estimate
    """Tokens per target call of suffix decoding with 8 draft tokens: how much the answers repeat each other."""
    copied_4grams: Estimate
    """Share of the answers' runs of 4 tokens that stand in the prompt."""
    answers: int
    """Answers that were looked at."""


def answer_kind(target: LanguageModel, answers: Sequence[Example], progress: Progress) -> AnswerKind:
    """Looks at a target's own answers.

    Args:
        target: Reads them once more.
        answers: In the order in which a server would see them.
        progress: Where a bar goes.
    """
    first = [_cut(answer) for answer in answers[:ANSWERS]]
    suffix = ways_of(BaselineSettings(), target.eos_token_ids)["suffix"].begin()
    walks = [walk(answer, suffix, DRAFT_TOKENS, TOKENS, None) for answer in first]
    sums = _certainties(target, first, progress)
    return AnswerKind(
        certainty=ratio(sums, [len(answer.answer_ids) for answer in first]),
        suffix_tokens_per_call=ratio([one.tokens for one in walks], [one.rounds for one in walks]),
        copied_4grams=overlap(first).copied_4grams,
        answers=len(first),
    )


def _cut(answer: Example) -> Example:
    return replace(answer, answer_ids=answer.answer_ids[:TOKENS], provenance=answer.provenance[:TOKENS])


@torch.no_grad()
def _certainties(target: LanguageModel, answers: Sequence[Example], progress: Progress) -> np.ndarray:
    """Sum of the likeliest tokens' probabilities over each answer."""
    sums = []
    with progress.task("reading the answers again", len(answers), "answers") as task:
        for start in range(0, len(answers), _BATCH):
            cache: HiddenCache = {}
            for hidden in answer_hidden_states(target, answers[start : start + _BATCH], cache):
                blocks = logit_blocks(hidden, target.vocab_size)
                sums.append(sum(float(_likeliest(target, hidden[block]).sum()) for block in blocks))
                task.advance()
    return np.array(sums)


def _likeliest(target: LanguageModel, hidden: torch.Tensor) -> torch.Tensor:
    return target.logits(hidden).float().softmax(-1).amax(-1)
