"""Several forms of a draft in a real engine, such as llama.cpp's q8_0 and q4_k: a server each, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from specdistill.data.batch import Example
from specdistill.errors import SpecdistillError
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.compared_drafts import score_compared
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.latency import time_and_tokens
from specdistill.evaluation.leaderboard import ComparedDraft, leaderboard_section
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report import Report
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.sections import latency_section, model_facts
from specdistill.evaluation.statistics import Estimate, of_sums, ratio
from specdistill.models.load import ModelSource
from specdistill.models.pair import ModelPair
from specdistill.progress import Progress
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine_report import EngineRun, emitted_tokens

FormRuns = dict[str, list[EngineRun]]
"""Name of a draft of --compare, or of --draft with a format of --compare-kv -> the batches."""


def kv_name(draft: str | None, kv: str) -> str:
    """A row of the leaderboard: the draft of --draft with another KV cache."""
    return f"{draft}, KV {kv}"


def time_forms(
    config: BenchConfig, timed: Callable[[BenchConfig], list[EngineRun]], progress: Progress, stop: Interruption
) -> FormRuns:
    """Times every draft of --compare and KV cache of --compare-kv with servers of its own, on the main run's prompts.

    Args:
        config: The settings.
        timed: Starts both servers for the settings that it gets, asks them, and stops them.
        progress: Where a failure is said; that draft is left out.
        stop: Ctrl-C; what was done until then is kept.
    """
    runs: FormRuns = {}
    alone = config.replace(compare=(), compare_kv=(), concurrency=())
    forms = {name: alone.replace(draft=name) for name in config.compare}
    forms |= {kv_name(config.draft, kv): alone.replace(draft_kv=kv) for kv in config.drafting.compare_kv}
    for name, form in forms.items():
        if stop:
            break
        try:
            runs[name] = timed(form)
        except SpecdistillError as error:
            progress.say(f"{name} was not compared: {error}; the report is without it")
    return {name: batches for name, batches in runs.items() if batches}


def with_forms(
    report: Report,
    config: BenchConfig,
    sources: Sequence[ModelSource],
    pair: ModelPair,
    answers: Sequence[Example],
    records: list[PromptAcceptance],
    runs: Sequence[EngineRun],
    forms: FormRuns,
    progress: Progress,
    stop: Interruption,
) -> Report:
    """Adds the leaderboard of --compare: alpha as scored here, speed and tokens per target call as the engine has them.

    Args:
        report: The report on --draft.
        config: The settings.
        sources: The drafts of --compare.
        pair: Target and draft with weights.
        answers: The plain engine's answers, on which all drafts are scored.
        records: The scores of --draft.
        runs: The main run.
        forms: Result of `time_forms`.
        progress, stop: Where bars go, and Ctrl-C.
    """
    asked = [source for source in sources if source.name in forms]
    if not forms or stop:
        return report
    models = Models(pair.target, pair.draft, None)
    # No context: the steps of our own decoder say nothing about the engine's.
    scored = score_compared(asked, config, models, answers, {}, [], None, None, progress, stop)
    own = ComparedDraft(model_facts(pair.draft), records, None)
    # The same weights, scored with an exact cache: what another one costs shows in the engine's own counters.
    caches = [kv_name(config.draft, kv) for kv in config.drafting.compare_kv]
    scored += [replace(own, facts=replace(own.facts, name=name)) for name in caches if name in forms]
    length = report.setup.num_draft_tokens
    rows = leaderboard_section(own, scored, None, config.served_rule, length, length) or []
    rows = [_measured(row, runs, forms.get(row.draft, runs)) for row in rows]
    rows.sort(key=lambda row: -row.speedup.mean if row.speedup is not None else 0)
    return replace(report, leaderboard=rows or None)


def _measured(row: LeaderboardRow, main: Sequence[EngineRun], runs: Sequence[EngineRun]) -> LeaderboardRow:
    """The row with the engine's numbers; a run that ended early is no pair of the main one."""
    calls = [run.speculation for run in runs if run.speculation is not None]
    length = None
    if len(calls) == len(runs):
        emitted = [emitted_tokens(run.speculative, first_drafted=False) for run in runs]
        length = ratio(emitted, [counts.rounds for counts in calls])
    paired = runs is not main and len(runs) == len(main)
    return replace(
        row,
        speedup=latency_section(runs).speedup,
        mean_acceptance_length=length,
        speedup_minus_draft=speedup_difference(runs, main) if paired else None,
    )


def speedup_difference(runs: Sequence[EngineRun], main: Sequence[EngineRun]) -> Estimate:
    """Speed-up of one draft minus that of another, paired by batch: each over the plain target of its own run.

    Args:
        runs, main: The same batches of prompts with the two drafts.
    """
    columns = [*_columns(runs), *_columns(main)]
    return of_sums(lambda a, b, c, d, e, f, g, h: (a / b) / (c / d) - (e / f) / (g / h), *columns)


def _columns(runs: Sequence[EngineRun]) -> list[np.ndarray]:
    """Tokens and seconds with the draft, then of the plain target, [batches] each."""
    ways = [run.speculative for run in runs], [run.plain for run in runs]
    return [column for batches in ways for column in reversed(time_and_tokens(batches))]
