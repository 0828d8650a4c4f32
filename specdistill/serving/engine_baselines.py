"""The report's `baselines`: an engine's other methods, timed in turn with the plain target and the draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from specdistill.data.batch import Example
from specdistill.evaluation.interruption import UNKNOWN
from specdistill.evaluation.latency import TimedRun, speedup_of
from specdistill.evaluation.recommend import TimedWay, recommend, same_answers, training_flags
from specdistill.evaluation.recommendation import Recommendation
from specdistill.evaluation.report_baselines import Baseline
from specdistill.evaluation.statistics import ratio
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine import Engine
from specdistill.serving.engine_copies import copied_tau, lookup_of
from specdistill.serving.engine_report import EngineRun, emitted_tokens
from specdistill.serving.engine_table import METHODS, Drafting
from specdistill.serving.speculation import total_of


def baselines(
    config: BenchConfig,
    runs: Sequence[EngineRun],
    engines: dict[str, Engine],
    asked: dict[str, Drafting],
    answers: Sequence[Example],
    stop_ids: frozenset[int],
) -> dict[str, Baseline] | None:
    """Measures each method against the plain target of the same batches; None where there is none.

    Args:
        config: The settings.
        runs: All batches that were done.
        engines: Method -> the engine that drafted by it.
        asked: Method -> how it was asked to.
        answers: The plain engine's answers, on which copying methods are simulated too.
        stop_ids: Ids that end an answer.
    """
    if not engines or not runs:
        return None
    found = {}
    for method, engine in engines.items():
        baseline = _one(runs, method, engine, asked[method])
        lookup = lookup_of(config.engine, asked[method], stop_ids)
        if lookup is not None:
            length, limit = asked[method].num_draft_tokens, config.max_new_tokens
            tau = ratio(*copied_tau(answers, lookup, length, limit, first_drafted=engine.first_drafted)).mean
            baseline = replace(baseline, predicted_mean_acceptance_length={length: tau})
        found[METHODS[method].baseline] = baseline
    return found


def _one(runs: Sequence[EngineRun], method: str, engine: Engine, asked: Drafting) -> Baseline:
    pairs = [(run, run.baselines[method]) for run in runs]
    counting = [(answered, answered.speculation) for _, answered in pairs if answered.speculation is not None]
    emitted = [emitted_tokens(answered.answers, engine.first_drafted) for answered, _ in counting]
    rounds = [counts.rounds for _, counts in counting]
    total = total_of(counts for _, counts in counting)
    share = None
    if total is not None and total.proposing is not None and total.rounds:
        share = total.proposing / total.rounds
    return Baseline(
        settings=settings_of(asked),
        mean_acceptance_length=ratio(emitted, rounds) if counting else UNKNOWN,
        proposed_share=share,
        speedup=speedup_of([run.plain for run in runs], [answered.answers for _, answered in pairs]),
        over_draft=speedup_of([run.speculative for run in runs], [answered.answers for _, answered in pairs]),
    )


def recommendation(
    config: BenchConfig,
    runs: Sequence[EngineRun],
    measured: Mapping[str, Baseline],
    num_draft_tokens: int,
    verdict: str,
) -> Recommendation | None:
    """`recommendation` of the report: --method against the methods beside it.

    Args:
        config: The settings.
        runs: All batches that were done.
        measured: Result of `baselines`.
        num_draft_tokens: Draft tokens per verification.
        verdict: Verdict on --method.
    """
    method = config.drafting.method
    ways = [TimedWay("draft" if method == "draft" else METHODS[method].baseline or method, num_draft_tokens, runs)]
    for name in runs[0].baselines if runs else ():
        batches = [TimedRun(run.plain, run.baselines[name].answers) for run in runs]
        length = int(measured[METHODS[name].baseline].settings["num_draft_tokens"])
        ways.append(TimedWay(METHODS[name].baseline, length, batches))
    return recommend(
        ways,
        config.target,
        config.draft,
        same_answers(config),
        base=config.adapter.target_base,
        verdict=verdict,
        training=training_flags(config),
    )


def settings_of(asked: Drafting) -> dict[str, int | float]:
    """Settings of a method, as the report names them."""
    settings: dict[str, int | float] = {"num_draft_tokens": asked.num_draft_tokens}
    if asked.method.startswith("ngram"):
        settings |= {"max": asked.lookup_max, "min": asked.lookup_min}
    return settings


def never_proposed(config: BenchConfig, runs: Sequence[EngineRun]) -> str | None:
    """The remark that a copying method found nothing to copy in all answers; None where it did."""
    total = total_of(run.speculation for run in runs)
    if not config.method_kind.copies or total is None or total.proposed:
        return None
    return f"--method {config.drafting.method} proposed no token in {len(runs)} batches"
