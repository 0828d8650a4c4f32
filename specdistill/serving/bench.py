"""`specdistill bench`: in our decoder, or in a real engine, with the same prompts with and without the draft."""

from __future__ import annotations

import dataclasses

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode, encode_all, in_chat
from specdistill.decoding.answers import write_answers
from specdistill.errors import ServerError, out_of_memory_named, smaller_batch
from specdistill.evaluation import acceptance
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.answer_scores import AnswerJudge
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.interruption import BenchInterruptedError, Interruption
from specdistill.evaluation.latency import run_differences, too_few_batches
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.report import Partial, Report
from specdistill.evaluation.report_scores import AnswerScores
from specdistill.evaluation.scored_prompts import scored_prompts
from specdistill.evaluation.target_pass import target_pass
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import LanguageModel, load
from specdistill.models.pair import ModelPair, resolve_device
from specdistill.progress import Progress, Quiet
from specdistill.serving import engine_models, engine_report
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.engine import Answered, Engine
from specdistill.serving.engine_baselines import baselines, never_proposed
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.engines import Opened, check_methods, drafting_of, engines
from specdistill.serving.speculation import Speculation, another_length, total_of

_LENGTH = 4
"""Draft tokens where the user names none: steps inside an engine can't be timed, so no length can be chosen."""
_WARM_UP = "Say hello."


def bench(config: BenchConfig, progress: Progress | None = None) -> Report:
    """Measures a draft against its target, in our decoder or in the engine that `config.engine` names.

    Args:
        config: Models, prompts, engine and settings.
        progress: Where bars go.

    Returns:
        The report; `to_json()` gives the schema of the documentation's page "The report". Where an engine failed in the
        middle it covers the prompts that were done, and `partial` says why.

    Raises:
        SpecdistillError: Bad input, or an engine that failed before two prompts were done; nothing is kept then.
        BenchInterruptedError: After Ctrl-C, with the report of what was measured.
        KeyboardInterrupt: After Ctrl-C where less than two prompts were done, or after a second one.
    """
    if config.engine_kind.place == "decoder":
        return measure_draft(config, progress)
    with out_of_memory_named(smaller_batch(config.timing.batch_size)):
        return bench_engine(config, progress or Quiet())


def bench_engine(config: BenchConfig, progress: Progress) -> Report:
    """Measures a draft in a real engine; see `bench`."""
    resolve_device(config.machine.device)
    base = config.adapter.target_base
    load.check_exists(config.target, "target", base)
    if config.draft is not None:
        load.check_exists(config.draft, "draft")
    check_methods(config)
    config.machine.limit_threads()
    prompts = scored_prompts(config, progress, target_is_present=config.target_is_present)
    prompts = prompts[: config.timing.latency_prompts or None]
    scoring = AnswerJudge.find(config.score.scorer, prompts)
    trained = training_prompts(config, prompts, progress.say)
    num_draft_tokens = config.num_draft_tokens or _LENGTH
    # Servers are measured first: our own copies of the models would take their memory.
    in_process = config.engine_kind.place == "process"
    # Prompts are checked before any weights are read.
    found = engine_models.find(config, progress.say)
    room = found.max_context - config.max_new_tokens - num_draft_tokens - 1
    encoded = encode_all(prompts, found.target.tokenizer, room, found.target.vocab_size)
    models = engine_models.loaded(config, found, progress.say) if in_process else engine_models.shells(found)
    engine_models.check_sizes(models)
    warn_about_prompts(prompts, encoded, models.target, progress.say)
    context = max(map(len, encoded)) + config.max_new_tokens + num_draft_tokens + 1
    stop = Interruption(progress.say)
    with engines(config, models, num_draft_tokens, context, progress) as opened:
        runs, failure = _time(config, opened, models.target, encoded, progress, stop)
    done = sum(len(run.plain) for run in runs)
    stop.check(done)
    wrong = _wrong_length(config, total_of(run.speculation for run in runs), done) or never_proposed(config, runs)
    if wrong is not None:
        progress.say(f"BEWARE: {wrong}")
    if failure is not None and done < 2:
        raise failure
    if not in_process and (models.draft is not None or _differ(config, runs)):
        models = engine_models.loaded(config, found, progress.say)
    records = costs = None
    if models.pair is not None and models.same_tokenizer and not config.method_kind.copies:
        records, costs = _score(config, models.pair, _answers(prompts[:done], encoded, runs), progress, stop)
    differences = None
    if config.sampling.greedy:
        judge = models.target if config.target_is_present else None
        differences = run_differences(judge, prompts[:done], encoded[:done], runs)
    report = engine_report.build(
        config, models, prompts[:done], records, runs, num_draft_tokens, differences, opened.drafting
    )
    asked = {method: drafting_of(config, method, num_draft_tokens) for method in opened.baselines}
    score = None
    if scoring is not None and models.pair is not None and not stop:
        score = _answer_scores(config, scoring, models.pair, encoded, runs, progress)
    judged = dataclasses.replace(report.economics, experts=costs)
    others = baselines(runs, opened.baselines, asked)
    report = dataclasses.replace(report, training_prompts=trained, score=score, economics=judged, baselines=others)
    if stop:
        raise BenchInterruptedError(dataclasses.replace(report, partial=stop.partial(done, len(prompts), done, done)))
    if failure is None:
        return report
    partial = Partial(prompts_done=done, prompts_asked=len(prompts), why=str(failure))
    return dataclasses.replace(report, partial=partial)


def _differ(config: BenchConfig, runs: list[EngineRun]) -> bool:
    """Whether greedy answers with and without drafts differ, so that the target must tell how close a call it was."""
    pairs = ((run.plain, run.speculative) for run in runs)
    different = any(one.token_ids != other.token_ids for pair in pairs for one, other in zip(*pair, strict=True))
    return config.sampling.greedy and config.target_is_present and different


def _time(
    config: BenchConfig,
    opened: Opened,
    target: LanguageModel,
    encoded: list[list[int]],
    progress: Progress,
    stop: Interruption,
) -> tuple[list[EngineRun], ServerError | None]:
    """Asks all engines batch by batch, each going first in turn.

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
    every: list[Engine] = [opened.plain, opened.drafting, *opened.baselines.values()]
    for engine in every:
        counts = engine.answer(greeting, sampling, 8, [0]).speculation
        wrong = _wrong_length(config, counts, answers=1) if engine is opened.drafting else None
        if wrong is not None:
            raise ServerError(wrong)
    with progress.task("plain against speculative", len(every) * len(encoded) * tokens, "tokens") as task:
        for number, start in enumerate(range(0, len(encoded), size)):
            chunk = encoded[start : start + size]
            seeds = config.timing.prompt_seeds(range(start, start + len(chunk)))
            answered: dict[Engine, Answered] = {}
            try:
                first = number % len(every)
                for engine in (*every[first:], *every[:first]):
                    answered[engine] = engine.answer(chunk, sampling, tokens, seeds, task.advance)
                speculative = answered[opened.drafting]
                others = {method: answered[engine] for method, engine in opened.baselines.items()}
                plain = answered[opened.plain].answers
                runs.append(EngineRun(plain, speculative.answers, speculative.speculation, others))
            except ServerError as error:
                return runs, error
            except KeyboardInterrupt as error:
                stop(error)
                return runs, None
    return runs, None


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
    if counts is None or config.engine_kind.place == "process" or config.method_kind.copies:
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
