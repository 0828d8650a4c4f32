"""The measurement behind `specdistill bench` in our own decoder, from two model names to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all
from specdistill.decoding import SpeculativeDecoder, build_guidance
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs, measure_costs, windows_of
from specdistill.decoding.proof import pack_proven
from specdistill.errors import SHORTER_TEXTS, out_of_memory_named, smaller_batch
from specdistill.evaluation import acceptance, draft_lengths, latency
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.answer_scores import AnswerJudge, own_scores
from specdistill.evaluation.config import MeasureConfig, TimedRunSettings
from specdistill.evaluation.interruption import FEWEST, BenchInterruptedError, Interruption
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.lenience_sweep import lenience_rows
from specdistill.evaluation.measured import Models, Scores, Timed, build_report
from specdistill.evaluation.other_target import find_other_target, score_other_target, with_other_target
from specdistill.evaluation.report import GreedyDifference, Report
from specdistill.evaluation.scored_prompts import answered_prompts, scored_prompts
from specdistill.evaluation.statistics import ratio
from specdistill.evaluation.target_pass import target_pass
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import LanguageModel, load, quantised
from specdistill.models.packed import check_packable
from specdistill.models.pair import FoundPair, find_pair, load_another, load_pair, resolve_device
from specdistill.progress import Progress, Quiet


def measure_draft(config: MeasureConfig, progress: Progress | None = None) -> Report:
    """Measures a draft against its target in our own decoder.

    Order: the target writes answers; the draft (and the one of `compare`) is scored on them; the steps' costs are
    timed; the draft length is chosen; then plain and speculative decoding are timed against each other.

    Args:
        config: Models, prompts and settings.
        progress: Where bars go.

    Returns:
        The report.

    Raises:
        SpecdistillError: Bad input; nothing was measured then.
        BenchInterruptedError: After Ctrl-C, with the report of what was measured.
        KeyboardInterrupt: After Ctrl-C where less than two prompts were done, or after a second one.
    """
    progress = progress or Quiet()
    _check_input(config)
    config.machine.limit_threads()
    prompts = scored_prompts(config, progress)
    judge = AnswerJudge.find(config.score.scorer, prompts)
    trained = training_prompts(config, prompts, progress.say)
    # Prompts are checked before any weights are read.
    found = find_pair(config.target, config.drafter, say=progress.say, target_base=config.adapter.target_base)
    other = find_other_target(config, found, progress)
    room = found.max_context - config.max_new_tokens
    encoded = encode_all(prompts, found.target.tokenizer, room, found.target.vocab_size)
    models = _load(config, found, progress)
    warn_about_prompts(prompts, encoded, models.target, progress.say)
    stop = Interruption(progress.say)
    with out_of_memory_named(SHORTER_TEXTS):
        answers = _answers(models, prompts, encoded, config, progress, stop)
        stop.check(len(answers))
        scores = _score(models, answers, config, progress, stop)
        own = None if judge is None or stop else own_scores(judge, models, encoded, config, progress, stop)
    costs = timed = sweep = None
    if not stop:
        with stop.caught(), out_of_memory_named(smaller_batch(config.timing.batch_size)):
            context = _context(config, encoded, room)
            costs = _costs(models, config, context, answers if scores.experts else (), progress)
            timed = _decode(config, models, prompts, encoded, scores.predicted, costs, progress, stop)
            if config.acceptance.lenience_sweep and timed.runs and not stop:
                asked = encoded[: timed.asked]
                sweep = lenience_rows(models, config, asked, answers, timed.num_draft_tokens, progress, judge)
    scored = answered_prompts(prompts, answers[: len(scores.draft)])
    report = build_report(config, models, scored, scores, costs, timed)
    report = replace(report, training_prompts=trained, lenience_sweep=sweep)
    if other is not None and not stop:
        beside = score_other_target(other, config, models, prompts, encoded, answers, progress, stop)
        report = with_other_target(report, beside, scores.draft)
    if judge is not None and own is not None:
        ways = judge.timed(timed.runs if timed else [], models.target)
        score = judge.section(judge.examples(answers, models.target), own.draft, ways, own.compared)
        report = replace(report, score=score)
    if not stop:
        return report
    counts = (timed.prompts, timed.asked) if timed else (0, 0)
    raise BenchInterruptedError(replace(report, partial=stop.partial(*counts, len(scored), len(prompts))))


def _check_input(config: MeasureConfig) -> None:
    """Refuses what can be refused before anything is loaded."""
    device = resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    others = (("draft", config.drafter), ("compare", config.compare), ("compare-target", config.second.compare_target))
    for role, name in others:
        if name is not None:
            load.check_exists(name, role)
    if config.weights.pack != "none":
        check_packable(config.weights.pack, device)


def _load(config: MeasureConfig, found: FoundPair, progress: Progress) -> Models:
    device, weights = config.machine.device, config.weights
    for source in (found.target, found.draft) if weights.pack != "none" else ():
        quantised.check_repackable(source.config, source.name, weights.pack)
    pair = load_pair(config.target, config.drafter, found=found, device=device, dtype=weights.dtype, say=progress.say)
    compared = None
    if config.compare is not None:
        dtype = pair.target.model.dtype
        compared = load_another(config.compare, "compare", pair.target, pair.target.device, dtype, progress.say)
    seconds = None
    if weights.pack != "none":
        seconds = pack_proven([model for model in (pair.target, pair.draft, compared) if model], weights.pack)
    guidance = build_guidance(config.guided, pair.target, config.chat, config.max_new_tokens)
    return Models(pair.target, pair.draft, compared, seconds, guidance)


def _answers(
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    config: MeasureConfig,
    progress: Progress,
    stop: Interruption,
) -> list[Example]:
    return write_answers(
        models.target,
        prompts,
        encoded,
        config.sampling,
        config.max_new_tokens,
        config.timing.seed,
        progress,
        on_interrupt=stop,
        guidance=models.guidance,
    )


def _score(
    models: Models,
    answers: Sequence[Example],
    config: MeasureConfig,
    progress: Progress,
    stop: Interruption,
) -> Scores:
    """Scores both drafts; the answers that were reached before a Ctrl-C, and the compared draft only on all of them."""
    longest = config.acceptance.max_draft_tokens + 1
    read = target_pass(models.target, answers, models.guidance, longest, progress, stop)
    target_states, routing = ({}, None) if read is None else read
    if read is not None:
        answers = [answer for answer in answers if answer in target_states]

    def score(draft: LanguageModel) -> list[PromptAcceptance]:
        with progress.task(f"scoring {draft.name}", len(answers), "answers") as task:
            return acceptance.score(
                models.target,
                draft,
                answers,
                config.sampling,
                target_cache=target_states,
                on_sequences=task.advance,
                on_interrupt=stop,
            )

    records = score(models.draft)
    stop.check(len(records))
    predicted = {
        length: ratio(*acceptance.predicted_tau(records, config.predicting_rule, length)).mean
        for length in range(1, config.acceptance.max_draft_tokens + 1)
    }
    compared = None if models.compared is None else score(models.compared)
    if compared is not None and len(compared) < len(records):
        compared = None
    return Scores(records, compared, predicted, None if routing is None else routing.costs(config.timing.batch_size))


def _context(config: MeasureConfig, encoded: list[list[int]], room: int) -> int:
    """Tokens before a timed step: half-way through the answer to a prompt of middling length."""
    middle = sorted(map(len, encoded))[len(encoded) // 2] + config.max_new_tokens // 2
    return min(middle, room + config.max_new_tokens - config.acceptance.max_draft_tokens - 1)


def _costs(
    models: Models, config: MeasureConfig, context: int, texts: Sequence[Example], progress: Progress
) -> Costs | None:
    """Times single steps: where their time depends on the tokens, more of them, on the given answers."""
    if not draft_lengths.steps_are_real(models):
        return None
    longest, repeats = config.acceptance.max_draft_tokens, 15 if texts else 7
    with progress.task("timing single steps", (repeats + 1) * (longest + 2), "passes") as task:
        return measure_costs(
            models.target,
            models.draft,
            batch_size=config.timing.batch_size,
            max_draft_tokens=longest,
            context=context,
            repeats=repeats,
            on_pass=task.advance,
            guidance=models.guidance,
            windows=windows_of(texts, longest + 1),
        )


def _decode(
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    predicted: dict[int, float],
    costs: Costs | None,
    progress: Progress,
    stop: Interruption,
) -> Timed:
    settings, asked = config.acceptance, config.num_draft_tokens
    chosen = asked or draft_lengths.best(predicted, costs)
    untimed = draft_lengths.why_untimed(models)
    if untimed is not None or costs is None:
        progress.say(f"decoding is not timed, since {untimed}")
        return Timed(chosen, 0, [], None, untimed)
    decoder = SpeculativeDecoder(
        models.target,
        models.draft,
        num_draft_tokens=draft_lengths.of_settings(settings, asked, chosen, costs),
        sampling=config.sampling,
        rule=config.served_rule,
        lenience=settings.lenience,
        guidance=models.guidance,
    )
    if settings.draft_length == "auto" or (not asked and settings.draft_length == "confidence"):
        chosen = settings.max_draft_tokens
    timed = min(config.timing.latency_prompts or len(prompts), len(prompts))
    runs = _time(models.target, decoder, encoded[:timed], config.timing, config.max_new_tokens, progress, stop)
    done = sum(len(run.plain) for run in runs)
    if stop and done < FEWEST:
        return Timed(chosen, timed, [], None)
    differences = None
    if not config.lossy and (config.sampling.greedy or not stop):
        with stop.caught():
            differences = _differences(config, models, prompts[:done], encoded, runs, chosen)
    return Timed(chosen, timed, runs, differences)


def _time(
    target: LanguageModel,
    decoder: SpeculativeDecoder,
    encoded: list[list[int]],
    settings: TimedRunSettings,
    max_new_tokens: int,
    progress: Progress,
    stop: Interruption,
) -> list[TimedRun]:
    remark = latency.too_few_batches(len(encoded), settings.batch_size)
    if remark is not None:
        progress.say(remark)
    latency.warm_up(target, decoder, encoded[0])
    with progress.task("plain against speculative", 2 * len(encoded) * max_new_tokens, "tokens") as task:
        return latency.time_both(
            target,
            decoder,
            encoded,
            batch_size=settings.batch_size,
            max_new_tokens=max_new_tokens,
            seeds=settings.prompt_seeds(range(len(encoded))),
            on_tokens=lambda row, ids: task.advance(len(ids)),
            on_interrupt=stop,
        )


def _differences(
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    runs: list[TimedRun],
    num_draft_tokens: int,
) -> list[GreedyDifference | None]:
    """Compares greedy runs as they are; when the bench samples, makes a few greedy ones for the check."""
    if config.sampling.greedy:
        return latency.run_differences(models.target, prompts, encoded[: len(prompts)], runs, models.guidance)
    few = min(4, len(prompts))
    return latency.greedy_check(
        models.target,
        models.draft,
        prompts[:few],
        encoded[:few],
        num_draft_tokens=num_draft_tokens,
        max_new_tokens=min(48, config.max_new_tokens),
        guidance=models.guidance,
    )
