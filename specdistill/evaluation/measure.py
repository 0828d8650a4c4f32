"""The measurement behind `specdistill bench` in our own decoder, from two model names to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all
from specdistill.decoding import build_guidance
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs, measure_costs, windows_of
from specdistill.decoding.proof import pack_proven
from specdistill.errors import SHORTER_TEXTS, out_of_memory_named, smaller_batch
from specdistill.evaluation import acceptance, draft_lengths
from specdistill.evaluation.answer_scores import AnswerJudge, own_scores, with_own_scores
from specdistill.evaluation.baselines import Beside, beside_draft
from specdistill.evaluation.buckets import buckets_section
from specdistill.evaluation.compared_drafts import find_compared, score_compared
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import BenchInterruptedError, Interruption
from specdistill.evaluation.measured import Models, Scores, build_report, with_baselines
from specdistill.evaluation.other_target import find_other_target, score_other_target, with_other_target
from specdistill.evaluation.report import Report
from specdistill.evaluation.scored_prompts import answered_prompts, scored_prompts
from specdistill.evaluation.statistics import ratio
from specdistill.evaluation.sweeps import Sweeps, run_sweeps
from specdistill.evaluation.target_pass import target_pass
from specdistill.evaluation.timed_run import time_run
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import load, quantised
from specdistill.models.packed import check_packable
from specdistill.models.pair import FoundPair, find_pair, load_pair, resolve_device
from specdistill.progress import Progress, Quiet


def measure_draft(config: MeasureConfig, progress: Progress | None = None) -> Report:
    """Measures a draft against its target in our own decoder.

    Order: the target writes answers; the draft (and the one of `compare`) is scored on them; the steps' costs are
    timed; lengths are chosen; then plain decoding, the draft and free drafts are timed against each other.

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
    found = find_pair(config.target, config.draft, say=progress.say, target_base=config.adapter.target_base)
    other, beside = find_other_target(config, found, progress), find_compared(config, found, progress)
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
        context = _context(config, encoded, room)
        compared = score_compared(
            beside, config, models, answers, scores.states, encoded, context, judge, progress, stop
        )
        scores = replace(scores, compared=compared)
    costs, timed, free, swept = None, None, None, Sweeps()
    if not stop:
        with stop.caught(), out_of_memory_named(smaller_batch(config.timing.batch_size)):
            costs = _costs(models, config, context, answers if scores.experts else (), progress)
            free = _beside_draft(config, models, answers, scores, costs)
            timed = time_run(config, models, prompts, encoded, scores.predicted, costs, free, progress, stop)
            swept = run_sweeps(config, models, encoded, answers, scores, timed, context, progress, stop, judge)
    scored = answered_prompts(prompts, answers[: len(scores.draft)])
    report = build_report(config, models, scored, scores, costs, timed)
    report = with_baselines(report, free, answers[: len(scores.draft)], timed)
    buckets = buckets_section(config, found, scored, answers, scores.draft)
    report = swept.into(replace(report, training_prompts=trained, buckets=buckets))
    if other is not None and not stop:
        second = score_other_target(other, config, models, prompts, encoded, answers, progress, stop)
        report = with_other_target(report, second, scores.draft)
    report = with_own_scores(report, judge, own, scores, timed.runs if timed else [], answers, models.target)
    if not stop:
        return report
    counts = (timed.prompts, timed.asked) if timed else (0, 0)
    raise BenchInterruptedError(replace(report, partial=stop.partial(*counts, len(scored), len(prompts))))


def _check_input(config: MeasureConfig) -> None:
    """Refuses what can be refused before anything is loaded."""
    device = resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    others = [("draft", config.draft), *(("compare", name) for name in config.compare)]
    for role, name in (*others, ("compare-target", config.second.compare_target)):
        if name is not None:
            load.check_exists(name, role)
    if config.weights.pack != "none":
        check_packable(config.weights.pack, device)


def _load(config: MeasureConfig, found: FoundPair, progress: Progress) -> Models:
    device, weights = config.machine.device, config.weights
    for source in (found.target, found.draft) if weights.pack != "none" else ():
        quantised.check_repackable(source.config, source.name, weights.pack)
    pair = load_pair(config.target, config.draft, found=found, device=device, dtype=weights.dtype, say=progress.say)
    seconds = None
    if weights.pack != "none":
        seconds = pack_proven([pair.target, pair.draft], weights.pack)
    guidance = build_guidance(config.guided, pair.target, config.chat, config.max_new_tokens)
    return Models(pair.target, pair.draft, seconds, guidance)


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
    """Scores the draft on the answers, or on those that were reached before a Ctrl-C."""
    longest = config.acceptance.max_draft_tokens + 1
    read = target_pass(models.target, answers, models.guidance, longest, progress, stop)
    target_states, routing = ({}, None) if read is None else read
    if read is not None:
        answers = [answer for answer in answers if answer in target_states]
    with progress.task(f"scoring {models.draft.name}", len(answers), "answers") as task:
        records = acceptance.score(
            models.target,
            models.draft,
            answers,
            config.sampling,
            target_cache=target_states,
            on_sequences=task.advance,
            on_interrupt=stop,
        )
    stop.check(len(records))
    predicted = {
        length: ratio(*acceptance.predicted_tau(records, config.predicting_rule, length)).mean
        for length in range(1, config.acceptance.max_draft_tokens + 1)
    }
    experts = None if routing is None else routing.costs(config.timing.batch_size)
    return Scores(records, predicted, experts, target_states)


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


def _beside_draft(
    config: MeasureConfig, models: Models, answers: Sequence[Example], scores: Scores, costs: Costs | None
) -> Beside | None:
    """Predicts what is free on the answers that were scored."""
    return beside_draft(
        config.beside,
        models.target.eos_token_ids,
        answers[: len(scores.draft)],
        [record.token_acceptance[config.predicting_rule] for record in scores.draft],
        config.acceptance.max_draft_tokens,
        config.max_new_tokens,
        costs,
    )
