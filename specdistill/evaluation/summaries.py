"""Results of the commands that make drafts. They stand here because `distill` fills them and `report` prints them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.to_json import finite

OTHER_MEASURES = {
    "score": "score of its own greedy answers",
    "reward": "reward of its own sampled answers",
    "loss": "loss per token",
    "tokens_per_call": "tokens per target call",
    "tokens_per_call_one_by_one": "tokens per target call, guessed one per pass",
}
"""Held-out numbers beside alpha, for people; those of `depth_name` are not among them."""
TOKENS_PER_CALL = "tokens_per_call"
"""Tokens per target call of a parallel draft at the K that it is trained for, bonus included."""
ONE_BY_ONE = "tokens_per_call_one_by_one"
"""The same of the draft used as an ordinary one, which takes a pass for each of the K tokens."""
_DEPTH = "acceptance_at_"


def depth_name(depth: int) -> str:
    """Name of a parallel draft's acceptance at a depth, counted from 1."""
    return f"{_DEPTH}{depth}"


def measure_label(name: str) -> str | None:
    """A held-out number's name for people; None for a rule, whose number is alpha."""
    if name.startswith(_DEPTH):
        return f"acceptance at depth {name.removeprefix(_DEPTH)}"
    return OTHER_MEASURES.get(name)


@dataclass(frozen=True, kw_only=True)
class RightAnswers:
    """Right answers among those that a model sampled, as Bansal et al. 2024 (arXiv 2408.16737) count them."""

    prompts: int
    """Prompts that were answered."""
    answers: int
    """Answers that were sampled."""
    right: int
    """Answers that the scorer calls right."""
    covered: int
    """Prompts with at least one right answer."""
    distinct_right: int
    """Different texts among the right answers to a prompt, summed over prompts."""
    false_positives: int | None = None
    """Right answers that the stricter scorer rejects; None without one."""

    @property
    def coverage(self) -> float:
        """Share of prompts with at least one right answer."""
        return self.covered / self.prompts

    @property
    def distinct_right_per_prompt(self) -> float:
        """Different right answers per prompt, over all prompts."""
        return self.distinct_right / self.prompts

    @property
    def false_positive_share(self) -> float | None:
        """Share of right answers that the stricter scorer rejects; None without one, or without a right answer."""
        return None if self.false_positives is None or not self.right else self.false_positives / self.right

    def shares(self) -> dict[str, float | None]:
        """The numbers of a report, by name; false_positive_share only where it was measured."""
        values = {"coverage": self.coverage, "distinct_right_per_prompt": self.distinct_right_per_prompt}
        return values | ({} if self.false_positives is None else {"false_positive_share": self.false_positive_share})

    def to_json(self) -> dict[str, Any]:
        """Counts and shares."""
        return dataclasses.asdict(self) | self.shares()


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """Result of `train_draft`, as in summary.json."""

    output: str
    """Directory of the draft."""
    steps: int
    """Optimiser steps that were done."""
    kept_step: int
    """Step of the draft that was written; 0 is the start."""
    best_step: int
    """Step of the best draft by the watched number; 0 is the start."""
    keep: str
    """`best` or `last`."""
    watched: str
    """Name of the held-out number that was watched, for people."""
    why: str
    """Why that step was kept, in words."""
    interrupted: bool
    learning_rate: float
    """Peak."""
    heldout_prompts: int
    training_prompts: int
    processes: int
    measure: str
    """Name of the numbers by rule, for people: alpha, or log-likelihood per byte."""
    before: Mapping[str, float]
    """Held-out numbers of the start, by rule, and by `score`, `reward` and `loss` where they were measured."""
    after: Mapping[str, float]
    """Held-out numbers of the kept draft; empty where an interruption came before they were measured."""
    gain: Mapping[str, Estimate]
    """Paired differences after - before."""
    caveat: str | None = None
    """Which of the numbers by rule are bounds, as those from stored labels are; None where none is."""
    scorer: str | None = None
    """Scorer of `score`; None without one."""
    preset: str = "none"
    """Value of --preset."""
    verdict: str | None = None
    """Gain of a run with a preset, or why nothing was trained, in a sentence; None without either."""
    disagreement: str | None = None
    """Warning that the best and the last draft differ widely; None where they don't."""
    answers_cut: int = 0
    """Given answers that were longer than --max-new-tokens."""
    answers_empty: int = 0
    """Answers without text, which were left out."""
    right_answers: RightAnswers | None = None
    """Right answers among best-of-n's samples; None where no scorer tells right from wrong."""
    rule: str | None = None
    """Acceptance rule of the numbers that depend on one: --rule, or greedy at temperature 0."""
    tokens_per_pass: int = 1
    """Tokens that the written draft guesses in one pass."""
    unlearned: str | None = None
    """Warning that a run with --parallel has not learned to guess several tokens; None where it has."""

    forgotten: str | None = None
    """Warning that such a draft gives fewer tokens per target call one by one than before; None where it does not."""

    def row_label(self, name: str) -> str | None:
        """As `measure_label`, with the scorer or the rule that the number holds under."""
        label = measure_label(name)
        under = {"score": self.scorer, "reward": None, "loss": None}.get(name, self.rule)
        return label if label is None or under is None else f"{label} ({under})"

    def to_json(self) -> dict[str, Any]:
        """The summary for summary.json; numbers that don't exist are None."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        right = None if self.right_answers is None else self.right_answers.to_json()
        gain = {rule: estimate.to_json() for rule, estimate in self.gain.items()}
        return finite(values | {"gain": gain, "right_answers": right})


@dataclass(frozen=True, kw_only=True)
class GeneratorSummary:
    """Answers of one model, and what they cost."""

    name: str
    parameters: int
    prompts: int
    rollouts: int
    """Answers."""
    tokens: int
    """Tokens of all answers."""
    budget: float
    """Sampling FLOPs, or the price of the tokens."""
    cut: int
    """Answers that --max-new-tokens cut."""
    distinct_per_prompt: float | None = None
    """Different answers per prompt; only where two models are compared."""
    target_log_likelihood: float | None = None
    """Mean log-likelihood per token under the target, in nats, over answers; only where two models are compared."""
    mean_score: float | None = None
    """Mean score; None without a scorer."""
    right_answers: RightAnswers | None = None
    """Right answers among them; None without a scorer."""
    example: str | None = None
    """A wrong answer, or the first where all are right, with its prompt and what was wanted; None without a scorer."""


@dataclass(frozen=True, kw_only=True)
class GenerateSummary:
    """Result of `generate`."""

    output: str
    match: Literal["compute", "cost"] | None
    """Unit of the budgets that two models were matched by; None for one model."""
    temperature: float
    """At which answers were sampled."""
    max_new_tokens: int
    """Limit of an answer."""
    generators: Mapping[str, GeneratorSummary]
    """By role: target, and other where there is one."""

    @property
    def budget_used(self) -> float | None:
        """Share of the target's budget that the other model's answers cost; None for one model."""
        if self.match is None:
            return None
        return self.generators["other"].budget / self.generators["target"].budget


@dataclass(frozen=True, kw_only=True)
class AnnotateSummary:
    """Result of `annotate`."""

    output: str
    answers: int
    tokens: int
    labels_per_token: float
    bytes_per_token: float
    """Bytes of the label columns per answer token, as they lie on disk."""
    planned_bytes_per_token: float
    """The most that was expected beforehand."""
    answers_cut: int = 0
    """Given answers that were longer than --max-new-tokens."""
    answers_empty: int = 0
    """Given answers without text, which were left out."""
    feature_bytes: int = 0
    """Bytes of the states that a head reads, with the target's embedding and head; 0 where none were asked for."""


@dataclass(frozen=True, kw_only=True)
class LayerCandidate:
    """A choice of layers and its alpha."""

    layers: Sequence[int]
    alpha: float
    """Teacher-forced alpha of the untrained cut."""
    trained_alpha: float | None = None
    """Alpha after the short training; None where there was none."""


@dataclass(frozen=True, kw_only=True)
class Covered:
    """Where the rows of a transplanted vocabulary come from, as shares of some tokens that add up to 1."""

    whole: float
    """Tokens that have the row of one token of the donor: same text, or same role."""
    averaged: float
    """Tokens that have the mean of the donor's rows for the pieces of their text."""
    mean_of_all: float
    """Tokens that start as the mean of all rows, since the donor has nothing for them."""


@dataclass(frozen=True, kw_only=True)
class DonorSummary:
    """How a donor's vocabulary was replaced by the target's."""

    name: str
    parameters: int
    """Parameters of the donor, with its own vocabulary."""
    same_tokenizer: bool
    """Whether donor and target use the same ids, so that every row is the donor's own."""
    tied: bool
    """Whether embedding and head are one matrix, as in the donor."""
    vocabulary: Covered
    """Over the target's ids, each once."""
    text: Covered
    """Over the target's calibration answers."""


@dataclass(frozen=True, kw_only=True)
class CutSummary:
    """Result of `init_draft`, as in init_draft.json."""

    config: Mapping[str, Any]
    """Settings, by their flat names."""
    layers: Sequence[int]
    """Layers of the target, or of the donor, that the draft keeps; those whose states a head reads."""
    candidates: Mapping[str, LayerCandidate]
    """Every choice that was compared, by its name."""
    parameters: int
    target_parameters: int
    head_size: int | None = None
    """Ids of a trimmed output head; None for the whole vocabulary."""
    head_covers: float | None = None
    """Share of the target's probability that ids chosen so hold on answers held back from the choice; None where all
    calibration answers were to one prompt."""
    donor: DonorSummary | None = None
    """None for a cut of the target."""
    kind: str | None = None
    """`eagle3` for a head; None for a model of its own."""

    def to_json(self) -> dict[str, Any]:
        """The summary for init_draft.json; what is None is left out."""
        return _without_none(dataclasses.asdict(self) | {"config": dict(self.config)})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in values.items() if value is not None}
    kept["candidates"] = {
        name: {key: value for key, value in candidate.items() if value is not None}
        for name, candidate in kept["candidates"].items()
    }
    return kept
