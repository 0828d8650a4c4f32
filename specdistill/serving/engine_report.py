"""The bench report of a real engine, in the same schema as our decoder's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation
from specdistill.evaluation import economics
from specdistill.evaluation.acceptance import PromptAcceptance, alpha_sums, predicted_tau
from specdistill.evaluation.economics import Economics
from specdistill.evaluation.interruption import UNKNOWN, counted_or_unknown
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.report import GreedyDifference, Lossless, Report
from specdistill.evaluation.report_acceptance import (
    Acceptance,
    CountedAcceptance,
    Counters,
    Prediction,
    ScoredAcceptance,
)
from specdistill.evaluation.report_setup import EngineSetup
from specdistill.evaluation.sections import (
    counted,
    latency_section,
    lossless_section,
    scored_section,
    setup_section,
)
from specdistill.evaluation.statistics import Estimate, of_sums, ratio
from specdistill.models.pair import resolve_device
from specdistill.serving import engine_models
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine import Answered, Engine
from specdistill.serving.engine_models import EngineModels
from specdistill.serving.speculation import Speculation, total_of

_UNSCORED = ScoredAcceptance(tokens_scored=0, alpha={}, predicted_mean_acceptance_length={}, by_category={})


@dataclass(frozen=True)
class EngineRun(TimedRun):
    """One batch of prompts through both engines."""

    speculation: Speculation | None
    """The drafting engine's own counts over the batch; None where it tells none."""
    baselines: dict[str, Answered] = field(default_factory=dict)
    """Method of --engine-baselines -> its answers and counts."""


def build(
    config: BenchConfig,
    models: EngineModels,
    prompts: Sequence[Prompt],
    records: Sequence[PromptAcceptance] | None,
    runs: Sequence[EngineRun],
    num_draft_tokens: int,
    differences: list[GreedyDifference | None] | None,
    engine: Engine,
    copied: tuple[np.ndarray, np.ndarray] | None = None,
) -> Report:
    """Puts the report together.

    Args:
        config: The command's configuration.
        models: Target and draft, as scored.
        prompts: The prompts that were done.
        records: Scores of the plain engine's answers; None where there is no draft, or its tokens are not the target's.
        runs: Both engines' answers, in batches.
        num_draft_tokens: Draft tokens per verification.
        differences: First difference of each prompt's greedy answers; None where the engines sampled.
        engine: The engine that drafted.
        copied: Where it copies text: tokens and target calls of each answer as they should be, from `copied_tau`.
    """
    rule = config.served_rule
    speed = latency_section(runs)
    columns, scored, predicted, alpha = copied, _UNSCORED, float("nan"), float("nan")
    if copied is not None:
        predicted = ratio(*copied).mean
        taus = {num_draft_tokens: predicted}
        scored = dataclasses.replace(_UNSCORED, predicted_mean_acceptance_length=taus)
    if records is not None:
        columns = predicted_tau(records, rule, num_draft_tokens, first_drafted=engine.first_drafted)
        longest = max(config.acceptance.max_draft_tokens, num_draft_tokens)
        taus = {
            length: ratio(*predicted_tau(records, rule, length, first_drafted=engine.first_drafted)).mean
            for length in range(1, longest + 1)
        }
        scored = scored_section(prompts, records, rule, num_draft_tokens, taus)
        predicted, alpha = ratio(*columns).mean, ratio(*alpha_sums(records, rule)).mean
    cost = round_cost(runs, engine.first_drafted)
    target, draft = engine_models.facts(config, models)
    return Report(
        target=target,
        draft=draft,
        setup=_setup(config, models, num_draft_tokens, len(prompts), engine.version),
        acceptance=Acceptance(
            **vars(_counted(runs, engine, columns)),
            **vars(scored),
        ),
        latency=speed,
        economics=_judge(config, models, num_draft_tokens, cost, predicted, alpha, speed.speedup),
        lossless=_lossless(differences),
    )


def _judge(
    config: BenchConfig,
    models: EngineModels,
    num_draft_tokens: int,
    cost: Estimate,
    predicted: float,
    alpha: float,
    measured: Estimate,
) -> Economics:
    """Draws the verdict from the cost of a round of one draft length."""
    facts = f"a round of {num_draft_tokens} draft tokens and their check takes {cost.mean:.2f} target steps"
    if config.method_kind.copies:
        facts = f"a target call with up to {num_draft_tokens} proposed tokens takes {cost.mean:.2f} plain ones"
    method = config.drafting.method
    unscored = "the draft has another tokenizer" if method == "draft" else f"{method} is no model that could be scored"
    verdict = economics.judge_rounds(
        {num_draft_tokens: cost.mean},
        {num_draft_tokens: predicted},
        num_draft_tokens,
        alpha,
        measured,
        facts,
        unscored,
        by_depth=models.draft is not None and models.draft.guesses_by_start,
    )
    return dataclasses.replace(verdict, round_cost_ci95=(cost.low, cost.high))


def _counted(
    runs: Sequence[EngineRun], engine: Engine, predicted_columns: tuple[np.ndarray, np.ndarray] | None
) -> CountedAcceptance:
    """Rates from the engine's own counts, and how far they are from the prediction of one pass over the answers."""
    counting = [(run, run.speculation) for run in runs if run.speculation is not None]
    total = total_of(counts for _, counts in counting)
    if total is None:
        counters = Counters(source=engine.counters)
        return dataclasses.replace(counted_or_unknown((), num_draft_tokens=0), counters=counters)
    emitted = np.array([emitted_tokens(run.speculative, engine.first_drafted) for run, _ in counting], dtype=float)
    rounds = np.array([counts.rounds for _, counts in counting], dtype=float)
    proposed = np.array([counts.proposed for _, counts in counting], dtype=float)
    accepted = np.array([counts.accepted for _, counts in counting], dtype=float)
    joint = [kept / total.rounds for kept in total.accepted_by_position or () if total.rounds]
    conditional = [now / then if then else math.nan for now, then in zip(joint, [1.0, *joint], strict=False)]
    rates = counted(joint, conditional, emitted, rounds, accepted, proposed)
    rates = dataclasses.replace(rates, counters=_counters(total, engine.counters))
    if predicted_columns is None:
        return rates
    # Predicted and measured sums of the same batches: prompts of one batch share a counter.
    sizes = np.cumsum([len(run.plain) for run, _ in counting])[:-1]
    tokens, expected = ([part.sum() for part in np.split(column, sizes)] for column in predicted_columns)
    return dataclasses.replace(
        rates,
        prediction=Prediction(
            mean_acceptance_length=ratio(*predicted_columns),
            measured=rates.mean_acceptance_length.mean,
            measured_over_predicted_minus_1=of_sums(
                lambda a, b, c, d: (a / b) / (c / d) - 1, emitted, rounds, tokens, expected
            ),
        ),
    )


def _counters(total: Speculation, source: str) -> Counters:
    return Counters(
        source=source,
        rounds=total.rounds,
        proposed=total.proposed,
        accepted=total.accepted,
        mean_acceptance_length=1 + total.accepted / total.rounds if total.rounds else float("nan"),
    )


def _lossless(differences: list[GreedyDifference | None] | None) -> Lossless:
    if differences is not None:
        return lossless_section(False, differences)
    return Lossless(checked=False, lossy=False, greedy_identical=False, prompts_compared=0, differences=[])


def round_cost(runs: Sequence[EngineRun], first_drafted: bool) -> Estimate:
    """Seconds of a round over seconds of a plain step, both without the prompt's own pass where that is no round.

    Args:
        runs: Both engines' answers, in batches.
        first_drafted: Whether the prompt's own pass is a round.

    Returns:
        NaN where the engine does not count rounds.
    """
    round_seconds, rounds, step_seconds, steps = [], [], [], []
    for run in runs:
        if run.speculation is None or not run.speculation.rounds:
            continue
        # Rows of a batch step together: a row's share of the rounds is the time that they all waited.
        rows = len(run.speculative)
        first = max(generation.first_token_seconds for generation in run.speculative)
        round_seconds.append(run.speculative[0].seconds - first)
        rounds.append(run.speculation.rounds / rows - first_drafted)
        step_seconds.append(run.plain[0].seconds - max(generation.first_token_seconds for generation in run.plain))
        steps.append(sum(len(generation.token_ids) - 1 for generation in run.plain) / rows)
    if not rounds:
        return UNKNOWN
    return of_sums(lambda a, b, c, d: (a / b) / (c / d), round_seconds, rounds, step_seconds, steps)


def emitted_tokens(answers: Sequence[Generation], first_drafted: bool) -> int:
    """Tokens that verifications put out: all, but the first of each answer where the prompt's own pass gives it."""
    return sum(len(generation.token_ids) - (not first_drafted) for generation in answers)


def _setup(config: BenchConfig, models: EngineModels, num_draft_tokens: int, prompts: int, version: str) -> EngineSetup:
    shared = setup_section(
        config,
        engine=config.engine,
        device="server" if config.engine_kind.place == "running" else _device(config, models),
        lossy=False,
        num_draft_tokens=num_draft_tokens,
        prompts=prompts,
        latency_prompts=prompts,
    )
    return EngineSetup(**vars(shared), engine_version=version, engine_args=config.servers.engine_args)


def _device(config: BenchConfig, models: EngineModels) -> str:
    return resolve_device(config.machine.device) if models.draft is None else str(models.draft.device)
