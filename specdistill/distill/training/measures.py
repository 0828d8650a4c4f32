"""Measures of a draft on the held-out prompts besides alpha, and which number a run watches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from specdistill.data.batch import Example, collate
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.heldout import HeldOutScorer
from specdistill.distill.training.loss import DistillationLoss, StepTotals
from specdistill.distill.training.loss_settings import Objective
from specdistill.evaluation.statistics import Estimate, paired_difference, ratio
from specdistill.evaluation.summaries import OTHER_MEASURES, TOKENS_PER_CALL
from specdistill.models import LanguageModel, ModelPair
from specdistill_kernels import SoftLabels

Sums = tuple[np.ndarray, np.ndarray]
"""Numerators and denominators of a mean, float64 [prompts] each."""


class Measures(Protocol):
    """Several numbers of the draft as it is now, from the same passes."""

    @property
    def names(self) -> list[str]:
        """Their keys, in order."""
        ...

    def sums(self, draft: LanguageModel) -> dict[str, Sums]:
        """Each number of every held-out prompt, as a ratio."""
        ...


class Measure(Protocol):
    """A number of the draft as it is now."""

    name: str
    """Its key: score, reward or loss."""

    def sums(self, draft: LanguageModel) -> Sums:
        """The number of each held-out prompt, as a ratio."""
        ...


class HeldOutLoss:
    """The run's own loss per token of held-out answers, without a reward and without mixed-in cross entropy.

    Args:
        pair: Target and draft.
        objective: The run's loss.
        examples: Held-out answers, in the draft's ids.
        states: The target's hidden states; asked once per answer.
        soft_labels: Labels in their place, one entry per answer; None where the target is in memory.
    """

    name = "loss"

    def __init__(
        self,
        pair: ModelPair,
        objective: Objective,
        examples: Sequence[Example],
        states: TargetStates,
        soft_labels: Sequence[SoftLabels] | None = None,
    ) -> None:
        self._target, self._examples, self._labels = pair.target, examples, soft_labels
        self._objective = dataclasses.replace(objective, distill_weight=None, ce_weight=0.0)
        self._hidden: list[Tensor] | None = None
        if objective.needs_target and soft_labels is None:
            # One by one: a sharded target makes one pass per call, and memory stays that of one answer.
            self._hidden = [states.hidden_states([example])[0].cpu() for example in examples]

    @torch.no_grad()
    def sums(self, draft: LanguageModel) -> Sums:
        draft.model.eval()
        draft.weights_changed()
        loss = DistillationLoss(draft, self._target, self._objective)
        sums = []
        for number, example in enumerate(self._examples):
            hidden = None if self._hidden is None else self._hidden[number].to(draft.device)
            soft = None
            if self._labels is not None and self._objective.needs_target:
                soft = SoftLabels(*(part.to(draft.device) for part in self._labels[number]))
            # Divided by one token: the sum over the answer.
            part = loss(collate([example]).to(draft.device), hidden, StepTotals(1, 1), soft_labels=soft)
            sums.append(float(part.loss))
        return np.array(sums), np.array([len(example.answer_ids) for example in self._examples], dtype=float)


@dataclass(frozen=True)
class Records:
    """One evaluation."""

    base: Any
    """Records of the scorer of alpha."""
    sums: Mapping[str, Sums]
    """Measure -> its numbers."""


class HeldOutMeasures:
    """Everything that is measured on held-out prompts: alpha (or text), and the measures beside it.

    Args:
        base: Scores alpha, or text where tokenizers differ.
        measures: The others.
        watch: `alpha`, or the name of one of the others.
        guesses: Those of a parallel draft; None for any other.
        remedy: Settings to change where the watched number gets worse, for people.
        own_target: Whether the draft's start is the target itself.
        lacking: Which prompts have no field `answer`, for people; None where all have.
    """

    def __init__(
        self,
        base: HeldOutScorer,
        measures: Sequence[Measure] = (),
        watch: str = "alpha",
        guesses: Measures | None = None,
        remedy: str = "lower --learning-rate",
        *,
        own_target: bool = False,
        lacking: str | None = None,
    ) -> None:
        self.remedy, self.own_target, self._lacking = remedy, own_target, lacking
        self._base, self._measures, self._guesses = base, {measure.name: measure for measure in measures}, guesses
        self._others = [*self._measures, *([] if guesses is None else guesses.names)]
        self.measure = base.measure
        """Name of the base's numbers, for people."""
        self.caveat = base.caveat
        """Which of these are bounds, for people; None where none is."""
        self.watched = base.watched if watch == "alpha" else watch
        """Name of the number that decides which draft is best."""
        if watch != "alpha" and watch not in self._others:
            raise ValueError(f"{watch} is watched but not measured")

    def score(self, draft: LanguageModel) -> Records:
        """Measures the draft as it is now."""
        base = self._base.score(draft)
        sums = {name: measure.sums(draft) for name, measure in self._measures.items()}
        return Records(base, sums if self._guesses is None else sums | self._guesses.sums(draft))

    def means(self, records: Records) -> dict[str, float]:
        """name -> mean."""
        return self._base.means(records.base) | {name: ratio(*sums).mean for name, sums in records.sums.items()}

    def watched_estimate(self, records: Records) -> Estimate:
        """The watched number with its interval."""
        if self.watched in records.sums:
            return ratio(*records.sums[self.watched])
        return self._base.estimates(records.base)[self.watched]

    def gains(self, after: Records, before: Records) -> dict[str, Estimate]:
        """name -> paired difference with its interval."""
        others = {name: paired_difference(sums, before.sums[name]) for name, sums in after.sums.items()}
        return self._base.gains(after.base, before.base) | others

    def blind_reward(self, records: Records) -> str | None:
        """Says that the reward is the same for every held-out prompt; None where it tells some apart, or is missing."""
        if "reward" not in records.sums:
            return None
        rewards, _ = records.sums["reward"]
        if len(rewards) < 2 or len({*rewards.tolist()}) > 1:
            return None
        lacking = "" if self._lacking is None else f"; {self._lacking}, so prompt.answer is None there"
        same = f"the held-out reward is {rewards[0]:.3f} for all {len(rewards)} prompts"
        return f"{same}: it tells nothing apart yet{lacking}"

    @property
    def unwatched_scorer(self) -> str | None:
        """Says what is watched in place of a scorer's score; None without a scorer, or where it is watched."""
        if "score" not in self._measures or self.watched == "score":
            return None
        return f"watched: {self.label(self.watched)}; --watch score watches the scorer"

    def merit(self, means: Mapping[str, float]) -> float:
        """The watched number with the sign that makes more better."""
        value = means[self.watched]
        return -value if self.low_is_good else value

    def wins_between_equals(self, new: Mapping[str, float], best: Mapping[str, float]) -> bool:
        """Whether a draft is better than an earlier one with the same watched number.

        Alpha under --rule decides, or the likelihood of text. Where the draft is its own target both are best for the
        untrained start, so the later one is taken.

        Args:
            new, best: Means of the two.
        """
        if not self.breaks_ties:
            return False
        return self.own_target or new[self._base.watched] > best[self._base.watched]

    @property
    def decides_between_equals(self) -> str:
        """The number, or the order, that decides between drafts with the same watched number, for people."""
        return "order (the later step)" if self.own_target and self.breaks_ties else self.label(self._base.watched)

    @property
    def breaks_ties(self) -> bool:
        """Whether another number than the watched one decides between equals."""
        return self.watched != self._base.watched

    @property
    def low_is_good(self) -> bool:
        """Whether less of the watched number is better."""
        return self.watched == HeldOutLoss.name

    def is_alpha(self, name: str) -> bool:
        """Whether a number is the alpha of a rule."""
        return self._base.measure == "alpha" and name not in self._others

    def label(self, name: str) -> str:
        """A number's name, for people."""
        if self.is_alpha(name) or name == "text":
            return self._base.measure if name == "text" else f"alpha ({name})"
        return OTHER_MEASURES[name] if name == TOKENS_PER_CALL else name

    def history_key(self, name: str) -> str:
        """A number's key in the history."""
        return f"heldout_alpha_{name}" if self.is_alpha(name) else f"heldout_{name}"

    def to_tensors(self, records: Records) -> dict[str, Tensor]:
        """Records for a checkpoint, float64."""
        base = {f"base/{name}": values for name, values in self._base.to_tensors(records.base).items()}
        return base | {f"sums/{name}": torch.from_numpy(np.stack(sums)) for name, sums in records.sums.items()}

    def from_tensors(self, tensors: Mapping[str, Tensor]) -> Records:
        """Inverse of `to_tensors`."""
        parts: dict[str, dict[str, Tensor]] = {"base": {}, "sums": {}}
        for name, values in tensors.items():
            which, _, key = name.partition("/")
            parts[which][key] = values
        sums = {}
        for name, values in parts["sums"].items():
            over, under = values.numpy()
            sums[name] = (over, under)
        return Records(self._base.from_tensors(parts["base"]), sums)
