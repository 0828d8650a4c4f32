"""The measurement behind `specdistill bench` in our own decoder, from two model names to the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from specdistill.data.batch import Example
from specdistill.data.prompt_checks import warn_about_prompts
from specdistill.data.prompts import Prompt, encode_all, load_prompts, spread_over_categories
from specdistill.decoding import AutoLength, ConfidenceLength, SpeculativeDecoder
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import Costs, measure_costs
from specdistill.decoding.draft_length import DraftLength
from specdistill.evaluation import acceptance, economics, latency
from specdistill.evaluation.acceptance import HiddenCache, PromptAcceptance
from specdistill.evaluation.config import AcceptanceSettings, MeasureConfig, ServedSampling, TimedRunSettings
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.report import GreedyDifference, Report
from specdistill.evaluation.report_acceptance import Acceptance
from specdistill.evaluation.report_setup import DecoderSetup
from specdistill.evaluation.sections import (
    compare_section,
    counted_section,
    latency_section,
    lossless_section,
    model_facts,
    scored_section,
    setup_section,
)
from specdistill.evaluation.statistics import ratio
from specdistill.evaluation.training_prompts import training_prompts
from specdistill.models import LanguageModel, load, vocabulary
from specdistill.models.packed import check_packable, pack
from specdistill.models.pair import load_pair, resolve_device
from specdistill.progress import Progress, Quiet


@dataclass(frozen=True)
class _Models:
    """The models of one measurement."""

    target: LanguageModel
    draft: LanguageModel
    compared: LanguageModel | None
    packing_seconds: float | None
    """None where weights were not packed."""


@dataclass(frozen=True)
class _Scores:
    """One pass of the models over the target's answers."""

    draft: list[PromptAcceptance]
    compared: list[PromptAcceptance] | None
    predicted: dict[int, float]
    """Draft length -> predicted tokens per target call."""


@dataclass(frozen=True)
class _Timed:
    """The timed run and the comparison of greedy outputs."""

    num_draft_tokens: int
    """Draft length; the most where it varies."""
    runs: list[TimedRun]
    differences: list[GreedyDifference | None]


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
    """
    progress = progress or Quiet()
    _check_input(config)
    prompts = spread_over_categories(load_prompts(config.prompts, config.chat), config.num_prompts)
    trained = training_prompts(config, prompts, progress.say)
    config.machine.limit_threads()
    models = _load(config, progress)
    target, draft = models.target, models.draft
    room = min(target.max_context, draft.max_context) - config.max_new_tokens
    encoded = encode_all(prompts, target.tokenizer, room)
    warn_about_prompts(prompts, encoded, target, progress.say)
    seed = config.timing.seed
    answers = write_answers(target, prompts, encoded, config.sampling, config.max_new_tokens, seed, progress)
    scores = _score(models, answers, config.sampling, config.predicting_rule, config.acceptance, progress)
    context = sorted(map(len, encoded))[len(encoded) // 2] + config.max_new_tokens // 2
    context = min(context, room + config.max_new_tokens - config.acceptance.max_draft_tokens - 1)
    costs = _costs(models, config.timing.batch_size, config.acceptance.max_draft_tokens, context, progress)
    timed = _decode(config, models, prompts, encoded, scores.predicted, costs, progress)
    return replace(_report(config, models, prompts, scores, costs, timed), training_prompts=trained)


def _check_input(config: MeasureConfig) -> None:
    """Refuses what can be refused before anything is loaded."""
    for role, name in (("target", config.target), ("draft", config.draft), ("compare", config.compare)):
        if name is not None:
            load.check_exists(name, role)
    if config.weights.pack != "none":
        check_packable(config.weights.pack, resolve_device(config.machine.device))


def _load(config: MeasureConfig, progress: Progress) -> _Models:
    device, weights = config.machine.device, config.weights
    pair = load_pair(config.target, config.draft, device=device, dtype=weights.dtype, say=progress.say)
    compared = None
    if config.compare is not None:
        source = load.find(config.compare, "compare", progress.say)
        vocabulary.check_same_vocabulary(pair.target.tokenizer, source.tokenizer, pair.target.name, source.name)
        compared = load.load_model(source, "compare", device=str(pair.target.device), dtype=pair.target.model.dtype)
    seconds = None
    if weights.pack != "none":
        seconds = sum(pack(model, weights.pack) for model in (pair.target, pair.draft, compared) if model is not None)
    return _Models(pair.target, pair.draft, compared, seconds)


def _score(
    models: _Models,
    answers: Sequence[Example],
    sampling: ServedSampling,
    rule: str,
    settings: AcceptanceSettings,
    progress: Progress,
) -> _Scores:
    target_states: HiddenCache = {}

    def score(draft: LanguageModel) -> list[PromptAcceptance]:
        with progress.task(f"scoring {draft.name}", len(answers), "answers") as task:
            return acceptance.score(
                models.target, draft, answers, sampling, target_cache=target_states, on_sequences=task.advance
            )

    records = score(models.draft)
    predicted = {
        length: ratio(*acceptance.predicted_tau(records, rule, length)).mean
        for length in range(1, settings.max_draft_tokens + 1)
    }
    return _Scores(records, None if models.compared is None else score(models.compared), predicted)


def _costs(models: _Models, batch_size: int, max_draft_tokens: int, context: int, progress: Progress) -> Costs:
    with progress.task("timing single steps", 8 * (max_draft_tokens + 2), "passes") as task:
        return measure_costs(
            models.target,
            models.draft,
            batch_size=batch_size,
            max_draft_tokens=max_draft_tokens,
            context=context,
            on_pass=task.advance,
        )


def _decode(
    config: MeasureConfig,
    models: _Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    predicted: dict[int, float],
    costs: Costs,
    progress: Progress,
) -> _Timed:
    settings, asked = config.acceptance, config.num_draft_tokens
    chosen = asked or _best_length(predicted, costs)
    decoder = SpeculativeDecoder(
        models.target,
        models.draft,
        num_draft_tokens=_draft_length(settings, asked, chosen, costs),
        sampling=config.sampling,
        rule=config.served_rule,
        lenience=settings.lenience,
    )
    if settings.draft_length == "auto" or (not asked and settings.draft_length == "confidence"):
        chosen = settings.max_draft_tokens
    timed = min(config.timing.latency_prompts or len(prompts), len(prompts))
    runs = _time(models.target, decoder, encoded[:timed], config.timing, config.max_new_tokens, progress)
    differences = [] if config.lossy else _differences(config, models, prompts[:timed], encoded, runs, chosen)
    return _Timed(chosen, runs, differences)


def _best_length(predicted: dict[int, float], costs: Costs) -> int:
    """The draft length with the highest predicted speed-up."""
    return max(
        predicted,
        key=lambda length: economics.speedup(
            predicted[length], length, costs.cost_ratio, costs.verify_cost[length + 1]
        ),
    )


def _draft_length(settings: AcceptanceSettings, asked: int, chosen: int, costs: Costs) -> int | DraftLength:
    if settings.draft_length == "auto":
        return AutoLength(costs, settings.max_draft_tokens)
    if settings.draft_length == "confidence":
        return ConfidenceLength(asked or settings.max_draft_tokens, settings.confidence)
    return chosen


def _time(
    target: LanguageModel,
    decoder: SpeculativeDecoder,
    encoded: list[list[int]],
    settings: TimedRunSettings,
    max_new_tokens: int,
    progress: Progress,
) -> list[TimedRun]:
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
        )


def _differences(
    config: MeasureConfig,
    models: _Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    runs: list[TimedRun],
    num_draft_tokens: int,
) -> list[GreedyDifference | None]:
    """Compares greedy runs as they are; when the bench samples, makes a few greedy ones for the check."""
    if config.sampling.greedy:
        return latency.run_differences(models.target, prompts, encoded[: len(prompts)], runs)
    few = min(4, len(prompts))
    return latency.greedy_check(
        models.target,
        models.draft,
        prompts[:few],
        encoded[:few],
        num_draft_tokens=num_draft_tokens,
        max_new_tokens=min(48, config.max_new_tokens),
    )


def _report(
    config: MeasureConfig,
    models: _Models,
    prompts: Sequence[Prompt],
    scores: _Scores,
    costs: Costs,
    timed: _Timed,
) -> Report:
    rule, length, speed = config.predicting_rule, timed.num_draft_tokens, latency_section(timed.runs)
    alpha = ratio(*acceptance.alpha_sums(scores.draft, rule)).mean
    compared = None
    if models.compared is not None and scores.compared is not None:
        compared = compare_section(models.compared, scores.draft, scores.compared, rule, length)
    return Report(
        target=model_facts(models.target),
        draft=model_facts(models.draft),
        setup=_setup(config, models, length, len(prompts), timed.runs),
        acceptance=Acceptance(
            **vars(counted_section(timed.runs, length)),
            **vars(scored_section(prompts, scores.draft, rule, length, scores.predicted)),
        ),
        latency=speed,
        economics=economics.judge(costs, scores.predicted, length, alpha, speed.speedup),
        lossless=lossless_section(config.lossy, timed.differences),
        compare=compared,
    )


def _setup(
    config: MeasureConfig, models: _Models, num_draft_tokens: int, prompts: int, runs: list[TimedRun]
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
