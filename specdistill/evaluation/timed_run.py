"""The timed run of our own decoder, with its bar, and the comparison of greedy outputs."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.data.prompts import Prompt
from specdistill.decoding import SpeculativeDecoder
from specdistill.evaluation import latency
from specdistill.evaluation.config import MeasureConfig, TimedRunSettings
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.measured import Models
from specdistill.evaluation.report import GreedyDifference
from specdistill.models import LanguageModel
from specdistill.progress import Progress


def time_prompts(
    target: LanguageModel,
    decoder: SpeculativeDecoder,
    encoded: list[list[int]],
    settings: TimedRunSettings,
    max_new_tokens: int,
    progress: Progress,
    stop: Interruption,
) -> list[TimedRun]:
    """Warms both ways of decoding up and times them; fewer runs than prompts after a Ctrl-C or a failure."""
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


def greedy_differences(
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
