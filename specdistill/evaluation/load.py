"""Measures costs and speed over the batch size, in our decoder."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

from specdistill.decoding import SpeculativeDecoder
from specdistill.decoding.costs import Costs, Window, measure_costs, passes_timed
from specdistill.errors import out_of_memory_named
from specdistill.evaluation.config import MeasureConfig
from specdistill.evaluation.interruption import Interruption
from specdistill.evaluation.latency import time_ways, warm_up
from specdistill.evaluation.load_section import load_row, load_section
from specdistill.evaluation.measured import Models, best_length
from specdistill.evaluation.report_load import Load, LoadRow
from specdistill.evaluation.statistics import FEWEST_UNITS
from specdistill.progress import Progress


def measure_load(
    config: MeasureConfig,
    models: Models,
    encoded: Sequence[list[int]],
    predicted: Mapping[int, float],
    context: int,
    windows: Sequence[Window],
    progress: Progress,
    stop: Interruption,
) -> Load | None:
    """Measures every batch size of the settings, from the smallest on.

    Args:
        config: Batch sizes, draft length, rule and sampling.
        models: Target and draft, which can be timed.
        encoded: Prompts to decode.
        predicted: Draft length -> predicted tokens per target call.
        context: Tokens before a timed step.
        windows: Texts to time, where steps depend on the tokens.
        progress: Where bars go.
        stop: Ctrl-C; the batch sizes that are done are then kept.

    Returns:
        Sizes for which memory ended are left out, and said; None where none was measured.
    """
    rows: dict[int, LoadRow] = {}
    costs: dict[int, Costs] = {}
    for size in sorted(config.load.batch_sizes):
        with stop.optional(f"batch size {size}"), out_of_memory_named("leave the larger --batch-sizes away"):
            rows[size], costs[size] = measure_size(
                config, models, encoded, size, predicted, context, windows, progress, stop
            )
        if stop:
            # An unfinished size says nothing that a finished one would.
            rows.pop(size, None)
        if size not in rows:
            break
    return load_section(rows, costs, predicted) if rows else None


def measure_size(
    config: MeasureConfig,
    models: Models,
    encoded: Sequence[list[int]],
    size: int,
    predicted: Mapping[int, float],
    context: int,
    windows: Sequence[Window],
    progress: Progress,
    stop: Interruption,
) -> tuple[LoadRow, Costs]:
    """Measures one batch size; see `measure_load`.

    Returns:
        Its row, of the batches that were done before a Ctrl-C, and its costs.
    """
    costs = _costs(config, models, size, context, windows, progress)
    return _row(config, models, encoded, size, predicted, costs, progress, stop), costs


def _costs(
    config: MeasureConfig,
    models: Models,
    size: int,
    context: int,
    windows: Sequence[Window],
    progress: Progress,
) -> Costs:
    longest, repeats = config.acceptance.max_draft_tokens, 15 if windows else 7
    with progress.task(
        f"timing single steps, batch {size}", passes_timed(models.draft, longest, repeats), "passes"
    ) as task:
        return measure_costs(
            models.target,
            models.draft,
            batch_size=size,
            max_draft_tokens=longest,
            context=context,
            repeats=repeats,
            on_pass=task.advance,
            guidance=models.guidance,
            windows=windows,
        )


def _row(
    config: MeasureConfig,
    models: Models,
    encoded: Sequence[list[int]],
    size: int,
    predicted: Mapping[int, float],
    costs: Costs,
    progress: Progress,
    stop: Interruption,
) -> LoadRow:
    length = config.num_draft_tokens or best_length(dict(predicted), costs)
    decoder = SpeculativeDecoder(
        models.target,
        models.draft,
        num_draft_tokens=length,
        sampling=config.sampling,
        rule=config.served_rule,
        lenience=config.acceptance.lenience,
        guidance=models.guidance,
    )
    chosen = batched(len(encoded), size)
    tokens = 2 * len(chosen) * config.max_new_tokens
    warm_up(models.target, decoder, encoded[0])
    with progress.task(f"plain against speculative, batch {size}", tokens, "tokens") as task:
        runs = time_ways(
            models.target,
            {"draft": decoder},
            [encoded[prompt] for prompt in chosen],
            batch_size=size,
            max_new_tokens=config.max_new_tokens,
            seeds=config.timing.prompt_seeds(range(len(chosen))),
            on_tokens=lambda row, ids: task.advance(len(ids)),
            on_interrupt=stop.only_interrupts,
        )["draft"]
    by_length = {each: _speedup(predicted, each, costs) for each in predicted}
    return load_row(
        runs,
        length,
        len(encoded),
        verify_cost=costs.verify_cost[length + 1],
        round_cost=costs.round_cost(length, predicted[length]),
        predicted_speedup=by_length[length],
        predicted_by_length=by_length,
    )


def _speedup(predicted: Mapping[int, float], length: int, costs: Costs) -> float:
    return predicted[length] / costs.round_cost(length, predicted[length])


def batched(prompts: int, size: int) -> list[int]:
    """Numbers of the prompts of whole batches: every prompt at least once, and enough batches for an interval.

    Further passes over the prompts shuffle them, so that no two batches hold the same prompts.

    Args:
        prompts: Number of prompts.
        size: Prompts per batch.
    """
    needed = size * max(FEWEST_UNITS, math.ceil(prompts / size))
    chosen: list[int] = []
    while len(chosen) < needed:
        order = list(range(prompts))
        if chosen:
            random.Random(len(chosen)).shuffle(order)
        chosen += order
    return chosen[:needed]
