"""The held-out look: alpha of the draft on the target's answers to prompts that training never sees."""

from __future__ import annotations

from collections.abc import Sequence as Many

from specdistill.data.batch import Sequence
from specdistill.decoding import Sampling
from specdistill.evaluation.acceptance import ALPHA_RULES, HiddenCache, PromptAcceptance, alpha_sums, score
from specdistill.evaluation.statistics import Estimate, paired_difference, ratio
from specdistill.models import LanguageModel


class HeldOut:
    """Scores drafts on the same answers again and again; the target's pass over them is made once."""

    def __init__(self, target: LanguageModel, answers: Many[Sequence], sampling: Sampling) -> None:
        self._target, self._answers, self._sampling = target, answers, sampling
        self._cache: HiddenCache = {}

    def score(self, draft: LanguageModel) -> list[PromptAcceptance]:
        """Scores the draft as it is now."""
        draft.model.eval()
        draft.weights_changed()
        return score(self._target, draft, self._answers, self._sampling, target_cache=self._cache)


def alphas(records: Many[PromptAcceptance]) -> dict[str, float]:
    """rule -> mean alpha."""
    return {rule: ratio(*alpha_sums(records, rule)).mean for rule in ALPHA_RULES}


def gains(after: Many[PromptAcceptance], before: Many[PromptAcceptance]) -> dict[str, Estimate]:
    """rule -> paired difference of alpha with its interval."""
    return {rule: paired_difference(alpha_sums(after, rule), alpha_sums(before, rule)) for rule in ALPHA_RULES}
