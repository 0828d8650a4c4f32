"""Puts the bench report of our own decoder together from what was measured, all of it or a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.decoding import Guidance
from specdistill.decoding.costs import Costs
from specdistill.decoding.step_choice import StepChoice
from specdistill.evaluation import acceptance, economics
from specdistill.evaluation.acceptance import HiddenCache, PromptAcceptance
from specdistill.evaluation.baselines import Beside
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.interruption import counted_or_unknown, latency_or_unknown, unknown_economics
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.leaderboard import ComparedDraft, leaderboard_section
from specdistill.evaluation.overlap import overlap
from specdistill.evaluation.recommend import TimedWay, recommend, same_answers, training_flags
from specdistill.evaluation.report import GreedyDifference, Lossless, Report
from specdistill.evaluation.report_acceptance import Acceptance
from specdistill.evaluation.report_setup import DecoderSetup
from specdistill.evaluation.sections import (
    compare_section,
    lossless_section,
    model_facts,
    scored_section,
    setup_section,
)
from specdistill.evaluation.statistics import Estimate, ratio
from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Models:
    """The models of one measurement."""

    target: LanguageModel
    draft: LanguageModel
    packing_seconds: float | None
    """None where weights were not packed."""
    guidance: Guidance | None = None
    """Guidance of the target."""
    steps: Mapping[str, StepChoice] | None = None
    """`target` and `draft` -> how their steps run; None where nobody asked to capture them."""

    def captured_steps(self) -> dict[str, StepChoice] | None:
        """`steps` with the graphs that were captured so far."""
        if self.steps is None:
            return None
        return {name: choice.so_far(getattr(self, name)) for name, choice in self.steps.items()}


@dataclass(frozen=True)
class Scores:
    """One pass of the models over the target's answers."""

    draft: list[PromptAcceptance]
    predicted: dict[int, float]
    """Draft length -> predicted tokens per target call."""
    experts: ExpertCosts | None = None
    """Predicted verify costs of a mixture of experts."""
    states: HiddenCache = field(default_factory=dict)
    """The target's hidden states over the answers, for further drafts."""
    compared: Sequence[ComparedDraft] = ()
    """The drafts of --compare."""


@dataclass(frozen=True)
class Timed:
    """The timed run and the comparison of greedy outputs."""

    num_draft_tokens: int
    """Draft length; the most where it varies."""
    asked: int
    """Prompts that were to be timed."""
    runs: list[TimedRun]
    differences: list[GreedyDifference | None] | None
    """None where outputs were not compared."""
    untimed: str | None = None
    """Why decoding was not timed here; None where it was, or where Ctrl-C came before."""
    beside: Mapping[str, list[TimedRun]] = field(default_factory=dict)
    """Name of a way of drafting without a model -> its batches."""

    @property
    def prompts(self) -> int:
        """Prompts that were timed."""
        return sum(len(run.plain) for run in self.runs)


def build_report(
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    scores: Scores,
    costs: Costs | None,
    timed: Timed | None,
    why_not_timed: str,
) -> Report:
    """Puts the report together; costs and timed runs are missing where the bench ended before them."""
    rule, runs = config.predicting_rule, timed.runs if timed else []
    length = timed.num_draft_tokens if timed else config.num_draft_tokens or best_length(scores.predicted, costs)
    speed = latency_or_unknown(runs)
    alpha = ratio(*acceptance.alpha_sums(scores.draft, rule)).mean
    compared = None
    if scores.compared:
        first = scores.compared[0]
        compared = compare_section(first.facts, scores.draft, first.records, rule, length)
    own = ComparedDraft(model_facts(models.draft), scores.draft, costs.drafting if costs else None)
    return Report(
        target=model_facts(models.target),
        draft=model_facts(models.draft),
        setup=_setup(config, models, length, len(prompts), runs),
        acceptance=Acceptance(
            **vars(counted_or_unknown(runs, length)),
            **vars(scored_section(prompts, scores.draft, rule, length, scores.predicted)),
        ),
        latency=speed,
        economics=replace(
            _economics(costs, scores.predicted, length, alpha, speed.speedup, timed, why_not_timed),
            experts=scores.experts,
        ),
        lossless=_lossless(config, timed),
        compare=compared,
        leaderboard=leaderboard_section(own, scores.compared, costs, rule, length, config.acceptance.max_draft_tokens),
    )


def _economics(
    costs: Costs | None,
    predicted: dict[int, float],
    length: int,
    alpha: float,
    measured: Estimate,
    timed: Timed | None,
    why_not_timed: str,
) -> economics.Economics:
    untimed = None if timed and timed.runs else (timed and timed.untimed) or why_not_timed
    if costs is not None:
        return economics.judge(costs, predicted, length, alpha, measured, untimed)
    return unknown_economics(length, untimed or why_not_timed)


def best_length(predicted: dict[int, float], costs: Costs | None) -> int:
    """The draft length with the highest predicted speed-up; the longest where steps were not timed."""
    if costs is None:
        return max(predicted)
    return max(predicted, key=lambda length: predicted[length] / costs.round_cost(length, predicted[length]))


def _lossless(config: MeasureConfig, timed: Timed | None) -> Lossless:
    if config.lossy or (timed is not None and timed.differences is not None):
        return lossless_section(config.lossy, timed.differences or [] if timed else [])
    return Lossless(checked=False, lossy=False, greedy_identical=False, prompts_compared=0, differences=[])


def _setup(
    config: MeasureConfig, models: Models, num_draft_tokens: int, prompts: int, runs: list[TimedRun]
) -> DecoderSetup:
    shared = setup_section(
        config,
        engine="specdistill",
        device=str(models.target.device),
        # Packed to int8, tokens that share a pass share a scale: checking several decides otherwise than one by one.
        lossy=config.lossy or config.weights.pack == "int8",
        num_draft_tokens=num_draft_tokens,
        prompts=prompts,
        latency_prompts=sum(len(run.plain) for run in runs),
    )
    return DecoderSetup(
        **vars(shared),
        lenience=config.acceptance.lenience,
        draft_length=config.acceptance.draft_length,
        pack=config.weights.pack,
        packing_seconds=models.packing_seconds,
    )


def baseline_sections(
    config: MeasureConfig,
    models: Models,
    free: Beside,
    answers: Sequence[Example],
    timed: Timed | None,
    verdict: str,
) -> dict[str, Any]:
    """`baselines`, `overlap` and `recommendation` of the report.

    Args:
        config: The settings.
        models: Both models.
        free: Drafts without a model.
        answers: The target's answers that were scored.
        timed: The timed run; None where there was none.
        verdict: Verdict on the draft.
    """
    baselines, recommendation = dict(free.predicted), None
    if timed is not None and timed.runs:
        baselines = free.timed(timed.beside, timed.runs)
        ways = [TimedWay("draft", timed.num_draft_tokens, timed.runs)]
        ways += [
            TimedWay(name, int(baselines[name].settings["num_draft_tokens"]), runs)
            for name, runs in timed.beside.items()
        ]
        recommendation = recommend(
            ways,
            config.target,
            config.drafter,
            same_answers(config),
            base=config.adapter.target_base,
            verdict=verdict,
            training=training_flags(config, models.draft.parallel),
            untimed={name: one.predicted_speedup or 0.0 for name, one in baselines.items() if one.speedup is None},
        )
    return {"baselines": baselines, "overlap": overlap(answers), "recommendation": recommendation}
