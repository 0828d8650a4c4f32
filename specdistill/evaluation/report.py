"""The bench report as dataclasses: one class per section of the JSON, one field per key.

The documentation's page "The report" is made of these classes, so a field's docstring says its unit and meaning.
Rates are fractions in [0, 1], times are seconds. A field whose default is None is left out of the JSON while it is
None; any other None, and every number that is not finite, is null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from specdistill.decoding.step_choice import StepChoice
from specdistill.evaluation.economics import Economics
from specdistill.evaluation.recommendation import Recommendation
from specdistill.evaluation.report_acceptance import Acceptance
from specdistill.evaluation.report_baselines import Baseline, Overlap
from specdistill.evaluation.report_buckets import Buckets
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.report_load import Load
from specdistill.evaluation.report_samples import Sample
from specdistill.evaluation.report_scores import AnswerScores
from specdistill.evaluation.report_setup import ModelFacts, Setup
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.to_json import to_json


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of one way of decoding."""

    tokens_per_second: float
    """Tokens per second, all rows of a batch together."""
    time_to_first_token: float
    """Seconds until the first token, mean over prompts."""
    time_per_output_token: float
    """Seconds between two tokens of one row after the first."""


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Speculative against plain decoding: the same prompts, in turn, in one run."""

    baseline: Speed
    """The target alone."""
    speculative: Speed
    """The target with the draft."""
    speedup: Estimate
    """Ratio of tokens per second, paired by prompt (by batch where prompts share one)."""
    engine_efficiency: float
    """Time inside the two models' forward passes over the wall time of decoding; null for real engines."""

    @property
    def is_timed(self) -> bool:
        """Whether decoding was timed at all."""
        return math.isfinite(self.speedup.mean)


@dataclass(frozen=True, kw_only=True)
class GreedyDifference:
    """First difference between two greedy answers to one prompt."""

    prompt: str
    """Id of the prompt."""
    position: int
    """Index of the first token that differs."""
    logit_gap: float | None = None
    """Distance of the target's two best logits there: some 1e-5 is a numerical tie, more is a bug. Absent where the
    target is not loaded here."""


@dataclass(frozen=True, kw_only=True)
class Lossless:
    """Whether greedy output with the draft is the target's own."""

    checked: bool
    """Whether outputs were compared."""
    lossy: bool
    """Whether the rule is lossy."""
    greedy_identical: bool
    """Whether every compared output was identical."""
    prompts_compared: int
    """Number of prompts compared."""
    differences: list[GreedyDifference]
    """One entry per prompt whose outputs differ."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Draft minus compared draft, or target minus compared target, paired by prompt: an interval that excludes 0 is a
    change."""

    greedy: Estimate
    """Difference of alpha under `greedy`."""
    sampled: Estimate
    """Difference of alpha under `sampled`."""
    argmax_draft: Estimate
    """Difference of alpha under `argmax_draft`."""
    at_temperature_1: dict[str, Estimate] | None = None
    """Rule -> difference of `alpha_at_temperature_1`; present at temperature 0 only."""
    predicted_mean_acceptance_length: Estimate
    """Difference of predicted tokens per target call at `setup.num_draft_tokens`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The first draft of --compare."""

    draft: ModelFacts
    """The other draft."""
    alpha: dict[str, Estimate]
    """Its alpha, as in `acceptance`."""
    alpha_at_temperature_1: dict[str, Estimate] | None = None
    """Its alpha at temperature 1, as in `acceptance`."""
    predicted_mean_acceptance_length: Estimate
    """Predicted tokens per target call at `setup.num_draft_tokens`."""
    difference: Difference
    """Draft minus this one."""


@dataclass(frozen=True, kw_only=True)
class TargetComparison:
    """The target of --compare-target: the same draft, prompts, seeds and rules."""

    target: ModelFacts
    """The other target."""
    tokens_scored: int
    """Tokens of the answers that it wrote itself."""
    alpha: dict[str, Estimate]
    """Rule -> the draft's alpha against it, on those answers."""
    alpha_at_temperature_1: dict[str, Estimate] | None = None
    """Its alpha at temperature 1, as in `acceptance`."""
    predicted_mean_acceptance_length: Estimate
    """Predicted tokens per target call at `setup.num_draft_tokens`, on those answers."""
    difference: Difference
    """Target minus this one, each on its own answers: what serving the one in place of the other changes."""
    difference_on_same_answers: Difference
    """Target minus this one, both on the target's answers: the part that the distributions make, without the text."""


@dataclass(frozen=True, kw_only=True)
class LenienceRow:
    """The rule `lenient` at one lenience, on the prompts of the timed run; all values and the plain target in turn."""

    lenience: float
    """A draft token is accepted as often as its probability divided by this; 1 is the exact rule `sampled`."""
    mean_acceptance_length: Estimate
    """Tokens per target call of real decoding, bonus token included."""
    acceptance_rate: Estimate
    """Accepted over proposed draft tokens of real decoding."""
    speedup: Estimate
    """Ratio of tokens per second to the plain target's, paired by prompt (or by batch)."""
    changed_tokens: Estimate
    """Share of tokens that differ from the exact target's: where the draft proposes, the total variation between what
    the rule emits and the target's distribution, a mean over the target's own answers. 0 for the exact rule."""
    score: Estimate | None = None
    """Mean score of the answers; present where answers are scored."""


@dataclass(frozen=True, kw_only=True)
class TrainingPrompts:
    """A draft whose training prompts make its numbers here say less, by the specdistill.yaml in its directory."""

    draft: str
    """Name of the draft, of --draft or --compare."""
    prompts: str
    """Value of --prompts of its training."""
    shared_prompts: int
    """How many of the scored prompts are among them."""
    remark: str
    """The reason, and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Partial:
    """A run that a stop or a failure ended early, or that left something out."""

    prompts_done: int
    """Prompts that the report covers."""
    prompts_asked: int
    """Prompts of the whole run."""
    why: str
    """Reason why it ended."""
    where: str | None = None
    """Part of the bench in which it ended: `answers`, `scoring`, `costs`, `timing` or the name of a section."""
    left_out: dict[str, str] | None = None
    """Part that failed by itself and is left out -> its error."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that `specdistill bench` measured."""

    schema: int = 1
    """Version of this schema; keys may be added within a version, never renamed."""
    target: ModelFacts
    """The model being served."""
    draft: ModelFacts
    """The model that proposes tokens."""
    setup: Setup
    """Settings and versions."""
    acceptance: Acceptance
    """How often the target keeps what the draft proposes."""
    latency: Latency
    """Speed, measured."""
    economics: Economics
    """Costs, predicted speed and the verdict."""
    lossless: Lossless
    """Whether greedy output stays the target's own."""
    compare: Comparison | None = None
    """The first draft of --compare."""
    compare_target: TargetComparison | None = None
    """The target of --compare-target."""
    lenience_sweep: list[LenienceRow] | None = None
    """The exact rule and each value of --lenience-sweep, from the mildest on."""
    score: AnswerScores | None = None
    """How right finished answers are; present with --scorer."""
    training_prompts: list[TrainingPrompts] | None = None
    """Present where a draft was trained on these prompts, or on another kind of prompts."""
    captured_steps: dict[str, StepChoice] | None = None
    """`target` and `draft` -> how their steps ran; present with --capture-steps."""
    baselines: dict[str, Baseline] | None = None
    """Name -> a way of drafting without a model; absent with --baselines none."""
    overlap: Overlap | None = None
    """Prompts and answers; present with `baselines`."""
    recommendation: Recommendation | None = None
    """The way to serve; present where anything was timed."""
    partial: Partial | None = None
    """Present where the run ended before all prompts were done."""
    buckets: Buckets | None = None
    """Where acceptance comes from; absent for a draft of another tokenizer."""
    load: Load | None = None
    """Speed over the batch; present with --batch-sizes or --concurrency."""
    leaderboard: list[LeaderboardRow] | None = None
    """The drafts of --draft and --compare, the fastest first; present with --compare."""
    samples: list[Sample] | None = None
    """A few answers of the timed run, token by token; absent where our decoder did not run."""

    def to_json(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers, in the schema of the documentation's page "The report"."""
        return to_json(self)
