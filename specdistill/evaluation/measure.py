"""The measurement behind `specdistill bench` in our own decoder, from two model names to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all
from specdistill.decoding import build_guidance
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs, measure_costs, passes_timed, windows_of
from specdistill.decoding.proof import pack_proven
from specdistill.decoding.step_choice import capture_pair
from specdistill.errors import SHORTER_TEXTS, out_of_memory_named, smaller_batch
from specdistill.evaluation import acceptance, draft_lengths
from specdistill.evaluation.answer_scores import AnswerJudge, own_scores, refuse_own_answers
from specdistill.evaluation.baselines import Beside, beside_draft
from specdistill.evaluation.buckets import buckets_section
from specdistill.evaluation.compared_drafts import find_compared, score_compared
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.lenience_sweep import lenience_rows, refuse_lenience_sweep
from specdistill.evaluation.load import measure_load
from specdistill.evaluation.measured import Models, Scores, Timed, baseline_sections, build_report
from specdistill.evaluation.other_target import find_other_target, score_other_target
from specdistill.evaluation.parts import Keep, Parts
from specdistill.evaluation.report import Report
from specdistill.evaluation.samples import FEWEST_SAMPLES, make_samples
from specdistill.evaluation.scored_prompts import answered_prompts, scored_prompts
from specdistill.evaluation.statistics import ratio
from specdistill.evaluation.target_pass import target_pass
from specdistill.evaluation.timed_run import time_run
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import load, quantised
from specdistill.models.head_draft import HeadModel
from specdistill.models.packed import check_packable
from specdistill.models.pair import FoundPair, find_pair, load_pair, resolve_device
from specdistill.progress import Progress, Quiet


def measure_draft(config: MeasureConfig, progress: Progress | None = None, keep: Keep | None = None) -> Report:
    """Measures a draft against its target in our own decoder.

    Order: the target writes answers; the draft (and those of `compare`) is scored on them; the steps' costs are
    timed; lengths are chosen; then plain decoding, the draft and free drafts are timed against each other.

    Args:
        config: Models, prompts and settings.
        progress: Where bars go.
        keep: Called with the report so far, marked as partial, after each part.

    Returns:
        The report.

    Raises:
        SpecdistillError: Bad input; nothing was measured then.
        BenchFailedError: A part failed, memory ended say; it has the report of what was measured.
        BenchInterruptedError: After Ctrl-C, with the report of what was measured.
        KeyboardInterrupt: After Ctrl-C where less than two prompts were done, or after a second one.
    """
    progress = progress or Quiet()
    _check_input(config)
    config.machine.limit_threads()
    prompts = scored_prompts(config, progress)
    judge = AnswerJudge.find(config.score.scorer, prompts, config.max_new_tokens)
    trained = training_prompts(config, prompts, progress.say)
    # Prompts are checked before any weights are read.
    found = find_pair(config.target, config.drafter, say=progress.say, target_base=config.adapter.target_base)
    refuse_lenience_sweep(config, found.draft)
    refuse_own_answers(config, found.draft)
    other, beside = find_other_target(config, found, progress), find_compared(config, found.target, progress)
    config = draft_lengths.for_drafts(config, found.draft, beside, progress.say)
    room = found.max_context - config.max_new_tokens
    encoded = encode_all(prompts, found.target.tokenizer, room, found.target.vocab_size)
    models = _load(config, found, progress)
    warn_about_prompts(prompts, encoded, models.target, progress.say)
    stop = Interruption(progress.say, smaller_batch(config.timing.batch_size))
    with out_of_memory_named(SHORTER_TEXTS):
        answers = _answers(models, prompts, encoded, config, progress, stop)
        stop.check(len(answers))
        scores = _score(models, answers, config, progress, stop)
    answers = answers[: len(scores.draft)]
    scored, context = answered_prompts(prompts, answers), timed_context(config, encoded, room)
    # `scores` is looked up anew each time: the drafts of --compare come later.
    parts = Parts(lambda *so_far: build_report(config, models, scored, scores, *so_far), stop, len(prompts), keep)
    parts.sections["training_prompts"] = trained
    parts.section("buckets", lambda: buckets_section(config, found, scored, answers, scores.draft))
    parts.keep("scoring")
    compared = score_compared(beside, config, models, answers, scores.states, encoded, context, judge, progress, stop)
    scores = replace(scores, compared=compared)
    _measure_parts(parts, config, models, prompts, encoded, answers, scores, context, judge, progress, stop)
    if other is not None:
        parts.section(
            "compare_target",
            lambda: score_other_target(other, config, models, prompts, encoded, answers, progress).section(
                scores.draft, config.predicting_rule, parts.report().setup.num_draft_tokens
            ),
        )
    return parts.finished()


def _measure_parts(
    parts: Parts,
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    answers: Sequence[Example],
    scores: Scores,
    context: int,
    judge: AnswerJudge | None,
    progress: Progress,
    stop: Interruption,
) -> None:
    """Times every way of decoding, and measures the sections that need the timed run."""
    own = judge and parts.optional("score", lambda: own_scores(judge, models, encoded, config, progress, stop))
    # Only the steps of a mixture of experts depend on the tokens.
    texts = answers if scores.experts else ()
    costs = parts.costs = parts.needed("costs", lambda: _costs(models, config, context, texts, progress))
    parts.keep("costs")
    free = parts.optional("baselines", lambda: _beside_draft(config, models, answers, scores, costs))

    def take(timed: Timed | None) -> None:
        parts.timed = timed
        if free is not None:
            verdict = parts.report().economics.verdict
            parts.sections |= baseline_sections(config, models, free, answers, timed, verdict)

    def so_far(timed: Timed) -> None:
        if parts.is_due:
            take(timed)
            parts.keep("timing", is_done=False)

    take(None)
    parts.keep("baselines")
    run = config, models, prompts, encoded, scores.predicted, costs, free, progress, stop
    timed = parts.needed("timing", lambda: time_run(*run, so_far)) or parts.timed
    take(timed)
    if models.steps is not None:
        parts.section("captured_steps", models.captured_steps)
    parts.keep("timing")
    runs = timed.runs if timed else []
    if judge is not None and own is not None:
        with stop.optional("score"):
            written, compared = judge.examples(answers, models.target), next(iter(scores.compared), None)
            beside = None if compared is None else compared.answers
            parts.sections["score"] = judge.section(written, own, judge.timed(runs, models.target), beside)
    if timed is None or not runs:
        return
    count, pair = max(FEWEST_SAMPLES, config.samples.show), (models.target, models.draft)
    parts.section(
        "samples", lambda: make_samples(*pair, prompts, encoded, runs, config.sampling, count, models.guidance)
    )
    asked, length = encoded[: timed.asked], timed.num_draft_tokens
    if config.acceptance.lenience_sweep:
        parts.section("lenience_sweep", lambda: lenience_rows(models, config, asked, answers, length, progress, judge))
    if config.load.batch_sizes:
        windows = windows_of(texts, config.acceptance.max_draft_tokens + 1)
        parts.section(
            "load", lambda: measure_load(config, models, asked, scores.predicted, context, windows, progress, stop)
        )


def _check_input(config: MeasureConfig) -> None:
    """Refuses what can be refused before anything is loaded."""
    device = resolve_device(config.machine.device)
    load.check_exists(config.target, "target", config.adapter.target_base)
    others = [("draft", config.drafter), *(("compare", name) for name in config.compare)]
    for role, name in (*others, ("compare-target", config.second.compare_target)):
        if name is not None:
            load.check_exists(name, role)
    if config.weights.pack != "none":
        check_packable(config.weights.pack, device)


def _load(config: MeasureConfig, found: FoundPair, progress: Progress) -> Models:
    device, weights = config.machine.device, config.weights
    for source in (found.target, found.draft) if weights.pack != "none" else ():
        quantised.check_repackable(source.config, source.name, weights.pack)
    pair = load_pair(config.target, config.drafter, found=found, device=device, dtype=weights.dtype, say=progress.say)
    pair.draft.one_by_one = not config.in_one_pass
    seconds = None
    if weights.pack != "none":
        # A head has too few weights to gain from it.
        packed = [pair.target] if isinstance(pair.draft, HeadModel) else [pair.target, pair.draft]
        seconds = pack_proven(packed, weights.pack)
    guidance = build_guidance(config.guided, pair.target, config.chat, config.max_new_tokens)
    steps = None
    if config.timing.capture_steps:
        steps = capture_pair(pair.target, pair.draft, batch_size=config.timing.batch_size)
        progress.say("; ".join(f"steps of the {name}: {choice.line()}" for name, choice in steps.items()))
    return Models(pair.target, pair.draft, seconds, guidance, steps)


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
    stop.where, longest = "scoring", config.acceptance.max_draft_tokens + 1
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
            depths=config.acceptance.max_draft_tokens,
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


def timed_context(config: MeasureConfig, encoded: list[list[int]], room: int) -> int:
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
    with progress.task("timing single steps", passes_timed(models.draft, longest, repeats), "passes") as task:
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
        answers,
        [record.token_acceptance[config.predicting_rule] for record in scores.draft],
        config.acceptance.max_draft_tokens,
        config.max_new_tokens,
        costs,
    )
