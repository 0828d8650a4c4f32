"""Held-out scores: how the draft predicts the target's answers to prompts that training never sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from specdistill.data.batch import Example
from specdistill.data.soft_labels import TokenLabels
from specdistill.decoding import Guidance, Sampling
from specdistill.distill.answers.scorers import mean_log_likelihoods
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.target.place import Labeller
from specdistill.evaluation.acceptance import (
    ALPHA_RULES,
    HiddenCache,
    PromptAcceptance,
    alpha_sums,
    answer_hidden_states,
    score,
)
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.statistics import Estimate, paired_difference, ratio
from specdistill.models import LanguageModel

_BATCH = 8
_BY_RULE = ("alpha", "token_acceptance", "alpha_at_1")


class HeldOutScorer(Protocol):
    """Scores drafts on the same answers again and again."""

    measure: str
    """Name of the numbers, for people."""
    caveat: str | None
    """Which numbers are bounds, for people; None where none is."""
    watched: str
    """The name of the number that early stopping follows; more is better."""

    def score(self, draft: LanguageModel) -> Any:
        """Records of the draft as it is now."""
        ...

    def means(self, records: Any) -> dict[str, float]:
        """name -> mean."""
        ...

    def estimates(self, records: Any) -> dict[str, Estimate]:
        """name -> mean with its interval."""
        ...

    def gains(self, after: Any, before: Any) -> dict[str, Estimate]:
        """name -> paired difference with its interval."""
        ...

    def to_tensors(self, records: Any) -> dict[str, Tensor]:
        """Records for a checkpoint, float64."""
        ...

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Any:
        """Inverse of `to_tensors`."""
        ...


class HeldOut:
    """Alpha under every rule; the target's pass over the answers is made once.

    A target that sees more than the draft is compared as it is: alpha says how far the draft does without what it sees.
    """

    measure = "alpha"
    caveat: str | None = None

    def __init__(
        self,
        target: LanguageModel,
        answers: Sequence[Example],
        sampling: Sampling,
        rule: str,
        guidance: Guidance | None = None,
    ) -> None:
        self._target, self._answers, self._sampling, self.watched = target, answers, sampling, rule
        self._cache: HiddenCache = {}
        if guidance is not None or any(answer.target_prompt_ids is not None for answer in answers):
            states = TargetStates(target, guidance=guidance)
            self._cache = {answer: states.hidden_states([answer])[0] for answer in answers}

    def score(self, draft: LanguageModel) -> list[PromptAcceptance]:
        """Records of the draft as it is now."""
        draft.model.eval()
        draft.weights_changed()
        return score(self._target, draft, self._answers, self._sampling, target_cache=self._cache)

    def means(self, records: Sequence[PromptAcceptance]) -> dict[str, float]:
        """rule -> mean alpha."""
        return {rule: estimate.mean for rule, estimate in self.estimates(records).items()}

    def estimates(self, records: Sequence[PromptAcceptance]) -> dict[str, Estimate]:
        """rule -> mean alpha with its interval."""
        return {rule: ratio(*alpha_sums(records, rule)) for rule in ALPHA_RULES}

    def gains(self, after: Sequence[PromptAcceptance], before: Sequence[PromptAcceptance]) -> dict[str, Estimate]:
        """rule -> paired difference of alpha."""
        return {rule: paired_difference(alpha_sums(after, rule), alpha_sums(before, rule)) for rule in ALPHA_RULES}

    def to_tensors(self, records: Sequence[PromptAcceptance]) -> dict[str, Tensor]:
        """`number.field` or `number.field.rule` -> values."""
        tensors = {}
        for number, record in enumerate(records):
            tensors[f"{number}.fkl"] = torch.from_numpy(record.fkl)
            for field in _BY_RULE:
                values = getattr(record, field)
                # At temperature 0 all rules hold the same array, which safetensors refuses to share.
                tensors |= {
                    f"{number}.{field}.{rule}": torch.from_numpy(rates.copy()) for rule, rates in values.items()
                }
        return tensors

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> list[PromptAcceptance]:
        """Inverse of `to_tensors`."""
        fields: dict[int, dict[str, Any]] = {}
        for name, values in tensors.items():
            number, field, *rule = name.split(".")
            record = fields.setdefault(int(number), {name: {} for name in _BY_RULE})
            if rule:
                record[field][rule[0]] = values.numpy()
            else:
                record[field] = values.numpy()
        return [PromptAcceptance(**fields[number]) for number in sorted(fields)]


class HeldOutLabels(HeldOut):
    """Alpha from soft labels, without the target in memory.

    From the likeliest ids `greedy` is exact, `sampled` at most too high by what the ids that were left out may hide
    (they are one outcome), `argmax_draft` at most too low by their probability. From drawn ids `sampled` and
    `argmax_draft` are right on average, and `greedy` compares with the likeliest id that was drawn.

    Args:
        labeller: Asked once for all answers.
        answers: The target's.
        temperature: Temperature of the labels.
        greedy: Whether the server will decode greedily: then every rule is agreement.
        rule: Acceptance rule that early stopping watches.
    """

    def __init__(
        self, labeller: Labeller, answers: Sequence[Example], temperature: float, greedy: bool, rule: str
    ) -> None:
        self._answers, self._temperature, self._greedy, self.watched = answers, temperature, greedy, rule
        self._labels = labeller.labels_of(answers)
        if not greedy and any(labels.draws is None for labels in self._labels):
            self.caveat: str | None = (
                "the labels hold the likeliest ids alone: `sampled` is an upper bound, `argmax_draft` a lower one, "
                "`greedy` exact; bench, which has the target, measures all three"
            )

    @torch.no_grad()
    def score(self, draft: LanguageModel) -> list[PromptAcceptance]:
        draft.model.eval()
        draft.weights_changed()
        records = []
        for start in range(0, len(self._answers), _BATCH):
            hidden = answer_hidden_states(draft, self._answers[start : start + _BATCH])
            for rows, labels in zip(hidden, self._labels[start : start + _BATCH], strict=True):
                records.append(self._record(*self._compare(draft, rows, labels), labels))
        return records

    def _compare(self, draft: LanguageModel, states: Tensor, labels: TokenLabels) -> tuple[Tensor, Tensor, Tensor]:
        """Reads from the draft's hidden states what `_record` needs, its first three arguments."""
        rows, argmax = torch.arange(len(labels.counts)).repeat_interleave(labels.counts), []
        at_ids = torch.empty(len(labels.ids), dtype=torch.float64)
        for block in logit_blocks(states, draft.vocab_size):
            log_q = (draft.logits(states[block]).float() / self._temperature).log_softmax(-1).cpu()
            inside = (rows >= block.start) & (rows < block.stop)
            at_ids[inside] = log_q[rows[inside] - block.start, labels.ids[inside]].double()
            argmax.append(log_q.argmax(-1))
        return rows, at_ids, torch.cat(argmax)

    def _record(self, rows: Tensor, at_ids: Tensor, argmax: Tensor, labels: TokenLabels) -> PromptAcceptance:
        """Scores one answer.

        Args:
            rows: Answer token of each label.
            at_ids: The draft's log-probability of each label, float64.
            argmax: The draft's likeliest id at each answer token.
            labels: The target's labels.
        """

        def per_token(values: Tensor) -> Tensor:
            return torch.zeros(len(labels.counts), dtype=torch.float64).index_add_(0, rows, values.double())

        log_p = labels.log_probs.double()
        says = (argmax[rows] == labels.ids).double()
        highest = torch.full((len(labels.counts),), -torch.inf, dtype=torch.float64)
        highest = highest.scatter_reduce(0, rows, log_p, "amax")
        greedy = per_token(says * (log_p == highest[rows])).clamp(max=1)
        if labels.draws is None:
            left_p, left_q = ((1 - per_token(logs.exp())).clamp(min=0) for logs in (log_p, at_ids))
            sampled = per_token(torch.minimum(log_p.exp(), at_ids.exp())) + torch.minimum(left_p, left_q)
            argmax_draft = per_token(says * log_p.exp())
            fkl = per_token(_times_log_ratio(log_p.exp(), at_ids.exp())) + _times_log_ratio(left_p, left_q)
        else:
            share = labels.draws / per_token(labels.draws)[rows]
            sampled = per_token(share * (at_ids - log_p).exp().clamp(max=1))
            argmax_draft = per_token(says * share)
            fkl = per_token(share * (log_p - at_ids))
        alpha = {"greedy": greedy, "sampled": sampled, "argmax_draft": argmax_draft}
        return PromptAcceptance(
            {rule: (greedy if self._greedy else values).numpy() for rule, values in alpha.items()}, {}, {}, fkl.numpy()
        )


def _times_log_ratio(p: Tensor, q: Tensor) -> Tensor:
    """p log(p / q), 0 where p is."""
    return torch.where(p > 0, p * (p.log() - q.clamp(min=1e-30).log()), 0)


class HeldOutText:
    """Log-likelihood per byte of the target's text: what two different tokenizers have in common.

    Args:
        answers: The target's answers in the draft's ids.
        num_bytes: UTF-8 bytes of each answer's text.
    """

    measure = "log-likelihood per byte, nats"
    caveat: str | None = None
    watched = "text"

    def __init__(self, answers: Sequence[Example], num_bytes: Sequence[int]) -> None:
        self._answers, self._bytes = answers, np.array(num_bytes, dtype=float)

    def score(self, draft: LanguageModel) -> np.ndarray:
        """Sum of log-probabilities of each answer."""
        draft.model.eval()
        draft.weights_changed()
        lengths = [len(answer.answer_ids) for answer in self._answers]
        return np.array(mean_log_likelihoods(draft, self._answers)) * np.array(lengths)

    def means(self, records: np.ndarray) -> dict[str, float]:
        return {name: estimate.mean for name, estimate in self.estimates(records).items()}

    def estimates(self, records: np.ndarray) -> dict[str, Estimate]:
        return {"text": ratio(records, self._bytes)}

    def gains(self, after: np.ndarray, before: np.ndarray) -> dict[str, Estimate]:
        return {"text": paired_difference((after, self._bytes), (before, self._bytes))}

    def to_tensors(self, records: np.ndarray) -> dict[str, Tensor]:
        return {"log_likelihood": torch.from_numpy(records)}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> np.ndarray:
        return tensors["log_likelihood"].numpy()
