"""`specdistill bench`: in our decoder, or in a real engine, with the same prompts with and without the draft."""

from __future__ import annotations

import dataclasses
import functools

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode, encode_all, in_chat
from specdistill.decoding.answers import write_answers
from specdistill.errors import ModelError, ServerError, out_of_memory_named, smaller_batch
from specdistill.evaluation import acceptance
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.buckets import buckets_section
from specdistill.evaluation.compared_drafts import find_compared
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.interruption import Interruption, unfinished
from specdistill.evaluation.latency import run_differences, too_few_batches
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.parts import Keep
from specdistill.evaluation.report import GreedyDifference, Partial, Report
from specdistill.evaluation.report_scores import AnswerScores
from specdistill.evaluation.scored_prompts import scored_prompts
from specdistill.evaluation.target_pass import target_pass
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import LanguageModel, load
from specdistill.models.pair import FoundPair, ModelPair, find_pair, load_pair, resolve_device
from specdistill.progress import Progress, Quiet
from specdistill.serving import engine_report
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.concurrency import ask_under_load, at_most, concurrency_section
from specdistill.serving.draft_forms import time_forms, with_forms
from specdistill.serving.engine import Answered, Engine
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engines import engines
from specdistill.serving.speculation import Speculation, another_length, total_of

_LENGTH = 4
"""Draft tokens where the user names none: steps inside an engine can't be timed, so no length can be chosen."""
_WARM_UP = "Say hello."


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
    base = config.adapter.target_base
    load.check_exists(config.target, "target", base)
    load.check_exists(config.draft, "draft")
    if config.engine_kind.launcher:
        config.engine_kind.launcher_module().check_installed(config.servers.engine_args)
    config.machine.limit_threads()
    prompts = scored_prompts(config, progress, target_is_present=config.target_is_present)
    prompts = prompts[: config.timing.latency_prompts or None]
    scoring = AnswerJudge.find(config.score.scorer, prompts)
    trained = training_prompts(config, prompts, progress.say)
    num_draft_tokens = config.num_draft_tokens or _LENGTH
    # Servers are measured first: our own copies of the models would take their memory.
    in_process = config.engine_kind.place == "process"
    # Prompts are checked before any weights are read.
    found = find_pair(config.target, config.draft, other_tokenizer=in_process, say=progress.say, target_base=base)
    room = found.max_context - config.max_new_tokens - num_draft_tokens - 1
    encoded = encode_all(prompts, found.target.tokenizer, room, found.target.vocab_size)
    sources = find_compared(config, found, progress)
    pair = _load(config, found, progress) if in_process else _load_shells(found)
    _check_sizes(pair)
    warn_about_prompts(prompts, encoded, pair.target, progress.say)
    context = max(map(len, encoded)) + config.max_new_tokens + num_draft_tokens + 1
    stop = Interruption(progress.say, smaller_batch(config.timing.batch_size))
    stop.where = "timing"
    with engines(at_most(config), pair, num_draft_tokens, context, progress) as (plain, drafting):
        runs, failure = _time(config, plain, drafting, pair.target, encoded, progress, stop)
        loaded = {} if failure else ask_under_load(config, plain, drafting, encoded, progress, stop)
    again = functools.partial(_timed_again, pair, context, encoded, progress, stop)
    forms = {} if failure else time_forms(config, again, progress, stop)
    done = sum(len(run.plain) for run in runs)
    stop.check(done)
    wrong = _wrong_length(config, total_of(run.speculation for run in runs), done)
    if wrong is not None:
        progress.say(f"BEWARE: {wrong}")
    if failure is not None and done < 2:
        raise failure
    build = functools.partial(engine_report.build, config, prompts=prompts[:done], runs=runs, engine=drafting)
    build = functools.partial(build, num_draft_tokens=num_draft_tokens)
    if keep is not None and not stop:
        keep(unfinished(build(pair=pair, records=None, differences=None), "timing", done, len(prompts)))
    records = costs = buckets = None
    answers: list[Example] = []
    stop.where = "scoring"
    with stop.caught():
        if not in_process:
            pair = _load(config, found, progress)
        if pair.same_tokenizer:
            answers = _answers(prompts[:done], encoded, runs)
            records, costs = _score(config, pair, answers, progress, stop)
            buckets = buckets_section(config, found, prompts, answers, records)
    report = build(pair=pair, records=records, differences=_differences(config, pair, prompts[:done], encoded, runs))
    score = None
    if scoring is not None and not stop:
        with stop.optional("score"):
            score = _answer_scores(config, scoring, pair, encoded, runs, progress)
    judged = dataclasses.replace(report.economics, experts=costs)
    report = dataclasses.replace(report, training_prompts=trained, score=score, economics=judged, buckets=buckets)
    under_load = concurrency_section(config, loaded, records, num_draft_tokens, done, drafting.first_drafted)
    report = dataclasses.replace(report, load=under_load)
    if records is not None:
        report = with_forms(report, config, sources, pair, answers, records, runs, forms, progress, stop)
    return _ended(report, failure, stop, done, len(prompts))


def _ended(report: Report, failure: ServerError | None, stop: Interruption, done: int, asked: int) -> Report:
    """The report as it is, or one that says why it is partial."""
    stop.raise_with(report, done, asked)
    if failure is None:
        return report
    return dataclasses.replace(report, partial=Partial(prompts_done=done, prompts_asked=asked, why=str(failure)))


def _differences(
    config: BenchConfig, pair: ModelPair, prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]
) -> list[GreedyDifference | None] | None:
    """First differences of greedy answers; None where the engines sampled."""
    if not config.sampling.greedy:
        return None
    # Weights that could not be loaded for scoring can't tell how close a call a difference was.
    judge = pair.target if config.target_is_present and pair.target.device.type != "meta" else None
    return run_differences(judge, prompts, encoded[: len(prompts)], runs)


def _load_shells(found: FoundPair) -> ModelPair:
    """Both models without weights: names, tokenizers and lengths."""
    return ModelPair(load.load_shell(found.target), load.load_shell(found.draft, "draft"))


def _load(config: BenchConfig, found: FoundPair, progress: Progress) -> ModelPair:
    """Both models with weights, the target's where the score needs them; engines use all rows of a trimmed head."""
    pair = load_pair(
        config.target,
        config.draft,
        found=found,
        device=config.machine.device,
        dtype=config.weights.dtype,
        other_tokenizer=config.engine_kind.place == "process",
        target_weights=config.target_is_present,
        say=progress.say,
    )
    return dataclasses.replace(pair, draft=dataclasses.replace(pair.draft, kept_ids=None))


def _check_sizes(pair: ModelPair) -> None:
    """Refuses two tokenizers of one size, which transformers takes for the same one."""
    if pair.same_tokenizer:
        return
    sizes = [model.model.config.get_text_config().vocab_size for model in (pair.target, pair.draft)]
    if sizes[0] == sizes[1]:
        raise ModelError(
            f"target and draft have different tokenizers, but both configs say vocab_size {sizes[0]}: transformers "
            "takes such a pair for one tokenizer and can't translate; 'specdistill export --format transformers' pads "
            "the draft by a row"
        )


def _time(
    config: BenchConfig,
    plain: Engine,
    drafting: Engine,
    target: LanguageModel,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
) -> tuple[list[EngineRun], ServerError | None]:
    """Asks both engines batch by batch, alternating which goes first.

    Returns:
        The batches that were done before a Ctrl-C, and the failure that ended the run early or None.
    """
    runs: list[EngineRun] = []
    sampling, tokens, size = config.sampling, config.max_new_tokens, config.timing.batch_size
    remark = too_few_batches(len(encoded), size)
    if remark is not None:
        progress.say(remark)
    warm_up = in_chat(Prompt("warm-up", ({"role": "user", "content": _WARM_UP},)), config.chat, "warm-up")
    greeting = [encode(warm_up, target.tokenizer)]
    for engine in (plain, drafting):
        wrong = _wrong_length(config, engine.answer(greeting, sampling, 8, [0]).speculation, answers=1)
        if wrong is not None:
            raise ServerError(wrong)
    with progress.task("plain against speculative", 2 * len(encoded) * tokens, "tokens") as task:
        for number, start in enumerate(range(0, len(encoded), size)):
            chunk = encoded[start : start + size]
            seeds = config.timing.prompt_seeds(range(start, start + len(chunk)))
            answered: dict[Engine, Answered] = {}
            try:
                for engine in (drafting, plain) if number % 2 else (plain, drafting):
                    answered[engine] = engine.answer(chunk, sampling, tokens, seeds, task.advance)
                speculative = answered[drafting]
                runs.append(EngineRun(answered[plain].answers, speculative.answers, speculative.speculation))
            except ServerError as error:
                return runs, error
            except (KeyboardInterrupt, Exception) as error:
                stop(error)
                return runs, None
    return runs, None


def _timed_again(
    pair: ModelPair,
    context: int,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
    config: BenchConfig,
) -> list[EngineRun]:
    """The batches of another configuration, with servers of its own."""
    with engines(config, pair, config.num_draft_tokens or _LENGTH, context, progress) as (plain, drafting):
        runs, failure = _time(config, plain, drafting, pair.target, encoded, progress, stop)
    if failure is not None:
        raise failure
    return runs


def _answer_scores(
    config: BenchConfig,
    judge: AnswerJudge,
    pair: ModelPair,
    encoded: list[list[int]],
    runs: list[EngineRun],
    progress: Progress,
) -> AnswerScores:
    """Scores of the engine's answers, and of those that the draft writes alone in our decoder."""
    timed = judge.timed(runs, pair.target)
    prompts, draft, length = judge.prompts, pair.draft, config.max_new_tokens
    if not pair.same_tokenizer:
        encoded = encode_all(prompts, draft.tokenizer, draft.max_context - length, draft.vocab_size)
    name = "draft writes answers"
    answers = write_answers(draft, prompts, encoded, config.sampling, length, config.timing.seed, progress, name)
    return judge.section(timed[0], judge.examples(answers, draft), timed)


def _wrong_length(config: BenchConfig, counts: Speculation | None, answers: int) -> str | None:
    """Says that a server drafts another number of tokens than --num-draft-tokens; None where its counters agree."""
    length = config.num_draft_tokens or _LENGTH
    # transformers drafts in this process, as it is told to; a draft of another tokenizer counts in other tokens.
    if counts is None or config.engine_kind.place == "process":
        return None
    found = another_length(counts, length, answers)
    if found is None:
        return None
    return (
        f"the server drafts {found:.3g} tokens at a time by its own counters, but --num-draft-tokens is {length}; set "
        "it to the number that the server was started with"
    )


def _answers(prompts: list[Prompt], encoded: list[list[int]], runs: list[EngineRun]) -> list[Example]:
    """The plain engine's answers: the text that verification sees."""
    written = [generation.token_ids for run in runs for generation in run.plain]
    return [
        Example(prompt.id, tuple(ids), tuple(answer), (int(Provenance.TARGET),) * len(answer))
        for prompt, ids, answer in zip(prompts, encoded, written, strict=False)
    ]


def _score(
    config: BenchConfig, pair: ModelPair, answers: list[Example], progress: Progress, stop: Interruption
) -> tuple[list[PromptAcceptance], ExpertCosts | None]:
    """Scores of the answers, and the predicted verify costs where the target is a mixture of experts."""
    sampling, read = config.sampling, None
    if config.target_is_present:
        longest = max(config.acceptance.max_draft_tokens, config.num_draft_tokens) + 1
        read = target_pass(pair.target, answers, None, longest, progress, stop)
    states, routing = ({}, None) if read is None else read
    costs = None if routing is None else routing.costs(config.timing.batch_size)
    with progress.task(f"scoring {pair.draft.name}", len(answers), "answers") as task:
        if not config.target_is_present:
            return acceptance.score_draft(pair.draft, answers, sampling.greedy, on_sequences=task.advance), None
        records = acceptance.score(
            pair.target, pair.draft, answers, sampling, target_cache=states, on_sequences=task.advance
        )
    return records, costs
