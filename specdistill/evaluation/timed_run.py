"""The timed run of a bench: the plain target, the draft, and what is free beside it, in turn on the same prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from specdistill.data.prompts import Prompt
from specdistill.decoding import SpeculativeDecoder
from specdistill.decoding.costs import Costs
from specdistill.evaluation import draft_lengths, latency
from specdistill.evaluation.baselines import Beside, Way, draft_kind
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import FEWEST, Interruption
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.measured import Models, Timed, best_length
from specdistill.evaluation.report import GreedyDifference
from specdistill.evaluation.report_baselines import Baseline
from specdistill.progress import Progress

_DRAFT = "draft"


def time_run(
    config: MeasureConfig,
    models: Models,
    prompts: Sequence[Prompt],
    encoded: list[list[int]],
    predicted: dict[int, float],
    costs: Costs | None,
    free: Beside | None,
    progress: Progress,
    stop: Interruption,
    keep: Callable[[Timed], None] | None = None,
) -> Timed:
    """Times decoding with the draft and with everything beside it against the plain target.

    Args:
        config: Settings.
        models: Target and draft.
        prompts, encoded: The prompts.
        predicted: Draft length -> predicted tokens per target call.
        costs: Of single steps; None where they were not timed.
        free: Drafts without a model, some of which are timed too; None times none.
        progress: Where bars go.
        stop: Ctrl-C.
        keep: Called with the run so far after each batch, once there are two prompts.
    """
    settings, asked = config.acceptance, config.num_draft_tokens
    chosen = asked or best_length(predicted, costs)
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
    beside = free.to_time(config.beside) if free else {}
    decoders = {_DRAFT: decoder} | {name: _beside(config, models, *way) for name, way in beside.items()}

    def so_far(runs: dict[str, list[TimedRun]]) -> Timed:
        if sum(len(run.plain) for run in runs[_DRAFT]) < min(FEWEST, timed):
            return Timed(chosen, timed, [], None)
        beside = {name: batches for name, batches in runs.items() if name != _DRAFT}
        return Timed(chosen, timed, runs[_DRAFT], None, beside=beside)

    on_batch = None if keep is None else lambda runs: keep(so_far(runs))
    result = so_far(_time(models, decoders, encoded[:timed], config, progress, stop, on_batch))
    differences = None
    if result.runs and not config.lossy and (config.sampling.greedy or not stop):
        with stop.caught():
            differences = _differences(config, models, prompts[: result.prompts], encoded, result.runs, chosen)
    return replace(result, differences=differences)


def _beside(config: MeasureConfig, models: Models, way: Way, predicted: Baseline) -> SpeculativeDecoder:
    return SpeculativeDecoder(
        models.target,
        draft_kind(way, models.target, models.draft),
        num_draft_tokens=int(predicted.settings["num_draft_tokens"]),
        sampling=config.sampling,
        guidance=models.guidance,
    )


def _time(
    models: Models,
    decoders: Mapping[str, SpeculativeDecoder],
    encoded: list[list[int]],
    config: MeasureConfig,
    progress: Progress,
    stop: Interruption,
    on_batch: Callable[[dict[str, list[TimedRun]]], None] | None,
) -> dict[str, list[TimedRun]]:
    settings, tokens = config.timing, config.max_new_tokens
    remark = latency.too_few_batches(len(encoded), settings.batch_size)
    if remark is not None:
        progress.say(remark)
    # Only the draft: what is free would remember the warm-up.
    latency.warm_up(models.target, decoders[_DRAFT], encoded[0])
    title = "plain against speculative" if len(decoders) == 1 else f"plain, draft, {', '.join([*decoders][1:])}"
    with progress.task(title, (len(decoders) + 1) * len(encoded) * tokens, "tokens") as task:
        return latency.time_ways(
            models.target,
            decoders,
            encoded,
            batch_size=settings.batch_size,
            max_new_tokens=tokens,
            seeds=settings.prompt_seeds(range(len(encoded))),
            on_tokens=lambda row, ids: task.advance(len(ids)),
            on_interrupt=stop,
            on_left_out=lambda name, error: stop.leave_out(f"the timing of {name}", error),
            on_batch=on_batch,
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
