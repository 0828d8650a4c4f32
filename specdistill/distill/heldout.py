"""The held-out look: what the draft makes of the target's answers to prompts that training never sees."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Many
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from specdistill.data.batch import Sequence
from specdistill.decoding import Guidance, Sampling
from specdistill.distill.scorers import mean_log_likelihoods
from specdistill.distill.target_states import TargetStates
from specdistill.evaluation.acceptance import ALPHA_RULES, HiddenCache, PromptAcceptance, alpha_sums, score
from specdistill.evaluation.statistics import Estimate, paired_difference, ratio
from specdistill.models import LanguageModel

_BY_RULE = ("alpha", "token_acceptance", "alpha_at_1")


class Look(Protocol):
    """Scores drafts on the same answers again and again."""

    measure: str
    """What the numbers are, for people."""
    watched: str
    """The name of the number that early stopping follows; more is better."""

    def score(self, draft: LanguageModel) -> Any:
        """Records of the draft as it is now."""
        ...

    def means(self, records: Any) -> dict[str, float]:
        """name -> mean."""
        ...

    def gains(self, after: Any, before: Any) -> dict[str, Estimate]:
        """name -> paired difference with its interval."""
        ...

    def to_tensors(self, records: Any) -> dict[str, Tensor]:
        """Records for a checkpoint, float64."""
        ...

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """And back."""
        ...


class HeldOut:
    """Alpha under every rule; the target's pass over the answers is made once."""

    measure = "alpha"

    def __init__(
        self,
        target: LanguageModel,
        answers: Many[Sequence],
        sampling: Sampling,
        rule: str,
        guidance: Guidance | None = None,
    ) -> None:
        self._target, self._answers, self._sampling, self.watched = target, answers, sampling, rule
        self._cache: HiddenCache = {}
        if guidance is not None:
            states = TargetStates(target, guidance=guidance)
            self._cache = {answer: states.of([answer])[0] for answer in answers}

    def score(self, draft: LanguageModel) -> list[PromptAcceptance]:
        """Records of the draft as it is now."""
        draft.model.eval()
        draft.weights_changed()
        return score(self._target, draft, self._answers, self._sampling, target_cache=self._cache)

    def means(self, records: Many[PromptAcceptance]) -> dict[str, float]:
        """rule -> mean alpha."""
        return {rule: ratio(*alpha_sums(records, rule)).mean for rule in ALPHA_RULES}

    def gains(self, after: Many[PromptAcceptance], before: Many[PromptAcceptance]) -> dict[str, Estimate]:
        """rule -> paired difference of alpha."""
        return {rule: paired_difference(alpha_sums(after, rule), alpha_sums(before, rule)) for rule in ALPHA_RULES}

    def to_tensors(self, records: Many[PromptAcceptance]) -> dict[str, Tensor]:
        """`number.field` or `number.field.rule` -> values."""
        found = {}
        for number, record in enumerate(records):
            found[f"{number}.fkl"] = torch.from_numpy(record.fkl)
            for field in _BY_RULE:
                values = getattr(record, field)
                # At temperature 0 all rules hold the same array, which safetensors refuses to share.
                found |= {f"{number}.{field}.{rule}": torch.from_numpy(each.copy()) for rule, each in values.items()}
        return found

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> list[PromptAcceptance]:
        """And back."""
        fields: dict[int, dict[str, Any]] = {}
        for name, values in tensors.items():
            number, field, *rule = name.split(".")
            record = fields.setdefault(int(number), {each: {} for each in _BY_RULE})
            if rule:
                record[field][rule[0]] = values.numpy()
            else:
                record[field] = values.numpy()
        return [PromptAcceptance(**fields[number]) for number in sorted(fields)]


class HeldOutText:
    """Log-likelihood per byte of the target's text: what two different tokenizers have in common.

    Args:
        answers: The target's answers in the draft's ids.
        num_bytes: UTF-8 bytes of each answer's text.
    """

    measure = "log-likelihood per byte, nats"
    watched = "text"

    def __init__(self, answers: Many[Sequence], num_bytes: Many[int]) -> None:
        self._answers, self._bytes = answers, np.array(num_bytes, dtype=float)

    def score(self, draft: LanguageModel) -> np.ndarray:
        """Sum of log-probabilities of each answer."""
        draft.model.eval()
        draft.weights_changed()
        lengths = [len(answer.answer_ids) for answer in self._answers]
        return np.array(mean_log_likelihoods(draft, self._answers)) * np.array(lengths)

    def means(self, records: np.ndarray) -> dict[str, float]:
        return {"text": ratio(records, self._bytes).mean}

    def gains(self, after: np.ndarray, before: np.ndarray) -> dict[str, Estimate]:
        return {"text": paired_difference((after, self._bytes), (before, self._bytes))}

    def to_tensors(self, records: np.ndarray) -> dict[str, Tensor]:
        return {"log_likelihood": torch.from_numpy(records)}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        return tensors["log_likelihood"].numpy()
