"""`specdistill bench`: in our decoder, or in a real engine, with the same prompts with and without the draft."""

from __future__ import annotations

import dataclasses
import functools
import time

import numpy as np

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all
from specdistill.errors import out_of_memory_named, smaller_batch
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.buckets import buckets_section
from specdistill.evaluation.compared_drafts import find_compared
from specdistill.evaluation.interruption import Interruption, unfinished
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.overlap import overlap
from specdistill.evaluation.parts import Keep, Pace
from specdistill.evaluation.report import GreedyDifference, Partial, Report
from specdistill.evaluation.scored_prompts import scored_prompts
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import load
from specdistill.models.pair import resolve_device
from specdistill.progress import Progress, Quiet
from specdistill.serving import engine_models, engine_report
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.concurrency import LoadRuns, ask_under_load, at_most, concurrency_section
from specdistill.serving.draft_forms import FormRuns, time_forms, with_forms
from specdistill.serving.engine_baselines import baselines, never_proposed, recommendation
from specdistill.serving.engine_copies import copied_tau, lookup_of
from specdistill.serving.engine_models import EngineModels, EngineSources
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engine_scores import (
    answer_scores,
    answers_differ,
    greedy_differences,
    plain_answers,
    score_answers,
)
from specdistill.serving.engine_table import DEFAULT_LENGTH, copied_length
from specdistill.serving.engine_timing import time_again, time_engines, wrong_length
from specdistill.serving.engines import Opened, check_methods, drafting_of, engines
from specdistill.serving.speculation import total_of

_FEWEST_PROMPTS = 2
"""Prompts below which nothing of a run that ended early is kept."""


def bench(config: BenchConfig, progress: Progress | None = None, keep: Keep | None = None) -> Report:
    """Measures a draft against its target, in our decoder or in the engine that `config.engine` names.

    Args:
        config: Models, prompts, engine and settings.
        progress: Where bars go.
        keep: Called with the report so far, marked as partial, after each part.

    Returns:
        The report; `to_json()` gives the schema of the documentation's page "The report". Where an engine failed in the
        middle it covers the prompts that were done, and `partial` says why.

    Raises:
        SpecdistillError: Bad input, or an engine that failed before two prompts were done; nothing is kept then.
        BenchFailedError: A part of the bench failed, with the report of what was measured.
        BenchInterruptedError: After Ctrl-C, with the report of what was measured.
        KeyboardInterrupt: After Ctrl-C where less than two prompts were done, or after a second one.
    """
    if config.engine_kind.place == "decoder":
        return measure_draft(config, progress, keep)
    with out_of_memory_named(smaller_batch(config.timing.batch_size)):
        return bench_engine(config, progress or Quiet(), keep)


def bench_engine(config: BenchConfig, progress: Progress, keep: Keep | None = None) -> Report:
    """Measures a draft in a real engine; see `bench`."""
    resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    for role, name in (("draft", config.draft), *(("compare", each) for each in config.compare)):
        if name is not None:
            load.check_exists(name, role)
    config = engine_models.recognised(config)
    check_methods(config)
    config.machine.limit_threads()
    prompts = scored_prompts(config, progress, target_is_present=config.target_is_present)
    prompts = prompts[: config.timing.latency_prompts or None]
    scoring = AnswerJudge.find(config.score.scorer, prompts, config.max_new_tokens)
    trained = training_prompts(config, prompts, progress.say)
    # Servers are measured first: our own copies of the models would take their memory.
    in_process = config.engine_kind.place == "process"
    # Prompts are checked before any weights are read.
    found = engine_models.find(config, progress.say)
    config = engine_models.with_length(config, found)
    length = config.num_draft_tokens or DEFAULT_LENGTH
    longest = copied_length(length)
    room = found.max_context - config.max_new_tokens - longest - 1
    encoded = encode_all(prompts, found.target.tokenizer, room, found.target.vocab_size)
    sources = find_compared(config, found.target, progress)
    models = engine_models.loaded(config, found, progress.say) if in_process else engine_models.shells(config, found)
    engine_models.check_sizes(models)
    warn_about_prompts(prompts, encoded, models.target, progress.say)
    context = max(map(len, encoded)) + config.max_new_tokens + longest + 1
    stop = Interruption(progress.say, smaller_batch(config.timing.batch_size))
    stop.where = "timing"
    with engines(at_most(config), models, length, context, progress) as opened:
        stop_ids = models.target.eos_token_ids
        nothing = Measured(config, found, [], encoded, [], opened, length, {}, {}, sources, stop_ids)
        kept = None if keep is None else functools.partial(_keep_timed, keep, Pace(), nothing, models, prompts)
        runs, failure = time_engines(config, opened, models.target, encoded, progress, stop, kept)
        measured = nothing.with_runs(runs, prompts)
        done = len(measured.prompts)
        if keep is not None and not stop:
            measured.keep(keep, models, len(prompts), is_done=True)
        asked = opened.plain, opened.drafting, encoded
        loaded = {} if failure else ask_under_load(config, *asked, progress, stop)
    again = functools.partial(time_again, models, context, encoded, progress, stop)
    forms = {} if failure else time_forms(config, again, progress, stop)
    stop.check(done)
    wrong = wrong_length(config, total_of(run.speculation for run in runs), done) or never_proposed(config, runs)
    if wrong is not None:
        progress.say(f"BEWARE: {wrong}")
    if failure is not None and done < _FEWEST_PROMPTS:
        raise failure
    measured = dataclasses.replace(measured, loaded=loaded, forms=forms)
    report = _scored(measured, models, scoring, progress, stop)
    report = dataclasses.replace(report, training_prompts=trained)
    stop.raise_with(report, done, len(prompts))
    if failure is None:
        return report
    return dataclasses.replace(report, partial=Partial(prompts_done=done, prompts_asked=len(prompts), why=str(failure)))


@dataclasses.dataclass(frozen=True)
class Measured:
    """Everything that the engines gave."""

    config: BenchConfig
    found: EngineSources
    prompts: list[Prompt]
    """Those that were done."""
    encoded: list[list[int]]
    """All prompts."""
    runs: list[EngineRun]
    opened: Opened
    length: int
    """Draft tokens per verification."""
    loaded: LoadRuns
    forms: FormRuns
    sources: list[load.ModelSource]
    """The drafts of --compare."""
    stop_ids: frozenset[int]
    """Ids that end an answer."""

    def with_runs(self, runs: list[EngineRun], prompts: list[Prompt]) -> Measured:
        """The same with the batches that are done, the first of all prompts."""
        return dataclasses.replace(self, runs=runs, prompts=prompts[: sum(len(run.plain) for run in runs)])

    def keep(self, keep: Keep, models: EngineModels, asked: int, *, is_done: bool) -> bool:
        """Hands on the report of the timing so far, marked as unfinished; False where too little is done for one."""
        done = len(self.prompts)
        if done < _FEWEST_PROMPTS:
            return False
        keep(unfinished(self.build(models, None, None), "timing", done, asked, is_done=is_done))
        return True

    def build(
        self,
        models: EngineModels,
        records: list[PromptAcceptance] | None,
        differences: list[GreedyDifference | None] | None,
    ) -> Report:
        """The report of what all engines have."""
        engine = self.opened.drafting
        return engine_report.build(
            self.config, models, self.prompts, records, self.runs, self.length, differences, engine, self._copied()
        )

    def _copied(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Tokens and target calls of each answer as they should be; None where nothing is copied."""
        config, first_drafted = self.config, self.opened.drafting.first_drafted
        asked = drafting_of(config, config.drafting.method, self.length)
        lookup = lookup_of(config.engine, asked, self.stop_ids) if config.method_kind.copies else None
        if lookup is None:
            return None
        return copied_tau(self.answers, lookup, self.length, config.max_new_tokens, first_drafted=first_drafted)

    @property
    def answers(self) -> list[Example]:
        """The plain engine's."""
        return plain_answers(self.prompts, self.encoded, self.runs)


def _keep_timed(
    keep: Keep, pace: Pace, nothing: Measured, models: EngineModels, prompts: list[Prompt], runs: list[EngineRun]
) -> None:
    """Hands on the report in the middle of the timing, now and then: no kill takes what is done."""
    if not pace.is_due:
        return
    begin = time.monotonic()
    if nothing.with_runs(runs, prompts).keep(keep, models, len(prompts), is_done=False):
        pace.kept(time.monotonic() - begin)


def _scored(
    measured: Measured, models: EngineModels, scoring: AnswerJudge | None, progress: Progress, stop: Interruption
) -> Report:
    """Scores the plain engine's answers with our own copies of the models, and puts the report together."""
    config, runs, opened = measured.config, measured.runs, measured.opened
    stop.where = "scoring"
    answers = measured.answers
    records = costs = buckets = score = None
    with stop.caught():
        in_process = config.engine_kind.place == "process"
        if not in_process and (models.draft is not None or answers_differ(config, runs)):
            models = engine_models.loaded(config, measured.found, progress.say)
        if models.pair is not None and models.same_tokenizer and not config.method_kind.copies:
            records, costs = score_answers(config, models.pair, answers, progress, stop)
            if measured.found.pair is not None:
                buckets = buckets_section(config, measured.found.pair, measured.prompts, answers, records)
    differences = greedy_differences(config, models.target, measured.prompts, measured.encoded, runs)
    report = measured.build(models, records, differences)
    if scoring is not None and models.pair is not None and not stop:
        with stop.optional("score"):
            score = answer_scores(config, scoring, models.pair, measured.encoded, runs, progress)
    asked = {method: drafting_of(config, method, measured.length) for method in opened.baselines}
    first_drafted = opened.drafting.first_drafted
    beside = baselines(config, runs, opened.baselines, asked, answers, measured.stop_ids)
    report = dataclasses.replace(
        report,
        score=score,
        economics=dataclasses.replace(report.economics, experts=costs),
        buckets=buckets,
        baselines=beside,
        overlap=overlap(answers) if beside else None,
        recommendation=recommendation(config, runs, beside or {}, measured.length, report.economics.verdict),
        load=concurrency_section(config, measured.loaded, records, measured.length, len(answers), first_drafted),
    )
    if records is None or models.pair is None:
        return report
    forms = measured.sources, models.pair, answers, records, runs, measured.forms
    return with_forms(report, config, *forms, progress, stop)
