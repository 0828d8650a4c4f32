"""The bench report's `acceptance`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class CategoryScores:
    """Prompts of one category."""

    alpha_greedy: float | None = None
    """Mean alpha under `greedy`; absent, like the next two, where it was scored without the target."""
    alpha_sampled: float | None = None
    """Mean alpha under `sampled`."""
    alpha_argmax_draft: float | None = None
    """Mean alpha under `argmax_draft`."""
    mean_acceptance_length: float
    """Predicted tokens per target call at `setup.num_draft_tokens`."""
    prompts: int
    """Number of prompts."""
    alpha_ci95: tuple[float, float] | None = None
    """95 % interval of the mean alpha under `setup.predicting_rule`."""
    tokens: int | None = None
    """Tokens of their answers."""

    def alpha(self, rule: str) -> float:
        """Mean alpha under one rule."""
        return getattr(self, f"alpha_{rule}")


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Counts of the drafting engine itself."""

    source: str
    """Where they were read; `none` where the engine tells none, and then nothing else is there."""
    rounds: int | None = None
    """Verifications."""
    proposed: int | None = None
    """Draft tokens."""
    accepted: int | None = None
    """Draft tokens that were kept."""
    mean_acceptance_length: float | None = None
    """1 + accepted / rounds, as the engine itself reports it; an answer's last draft may reach beyond its end."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The engine's counters against what its rule should give."""

    mean_acceptance_length: Estimate
    """Tokens per target call, predicted from one pass over the answers."""
    measured: float
    """Tokens per target call, counted."""
    measured_over_predicted_minus_1: Estimate
    """Relative distance of the two; an interval far from 0 means another rule, another model or a bug."""


@dataclass(frozen=True, kw_only=True)
class CountedAcceptance:
    """Acceptance as real decoding counted it."""

    by_position: list[float]
    """Share of the rounds that proposed i draft tokens, in our decoder, or of all rounds, in an engine, in which the
    first i were all kept; empty where an engine counts no positions. An answer's last rounds propose fewer, so that the
    share can rise from one i to the next. Null where no round proposed so many."""
    by_position_conditional: list[float]
    """Share of the rounds that kept i - 1 draft tokens which also kept the i-th; null where none came that far."""
    mean_acceptance_length: Estimate
    """Tokens per target call (tau) of real decoding, bonus token included; sum over sum."""
    mean_acceptance_length_macro: float
    """The same, averaged over prompts."""
    acceptance_rate: Estimate
    """Accepted over proposed draft tokens of real decoding."""
    counters: Counters | None = None
    """Counts of the engine; present for real engines."""
    prediction: Prediction | None = None
    """The counts against what the rule should give; present for real engines that count."""


@dataclass(frozen=True, kw_only=True)
class ScoredAcceptance:
    """Acceptance as one pass of both models over the target's answers predicts it."""

    tokens_scored: int
    """Tokens of the target's answers over which alpha is averaged."""
    alpha: dict[str, Estimate]
    """Rule -> expected acceptance of one draft token, teacher-forced on answers that the target wrote at the bench
    temperature, both distributions after temperature and filters; for a parallel draft or a head of a round's first
    token. Empty, like all scores, for a draft of another tokenizer."""
    alpha_at_temperature_1: dict[str, Estimate] | None = None
    """Rule that samples -> alpha compared at temperature 1; present at temperature 0 only."""
    alpha_by_depth: dict[str, list[float]] | None = None
    """Rule -> alpha of the first, second, ... token of a round of a parallel draft or a head, over all places where a
    round could start; the first is `alpha`. Absent for drafts whose guess does not depend on the round."""
    predicted_mean_acceptance_length: dict[int, float]
    """Draft length -> predicted tokens per target call."""
    by_category: dict[str, CategoryScores]
    """Category of prompts -> its scores."""


@dataclass(frozen=True, kw_only=True)
class Acceptance(ScoredAcceptance, CountedAcceptance):
    """How often the target keeps what the draft proposes."""
