"""The report's `load`: where a draft stops paying, and the best draft length of every batch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from specdistill.decoding.costs import Costs
from specdistill.evaluation.interruption import latency_or_unknown
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.report_load import Load, LoadRow
from specdistill.evaluation.statistics import FEWEST_UNITS, Estimate


def load_row(
    runs: Sequence[TimedRun],
    num_draft_tokens: int,
    prompts: int,
    *,
    verify_cost: float | None,
    round_cost: float,
    predicted_speedup: float,
    predicted_by_length: dict[int, float] | None = None,
) -> LoadRow:
    """A row from timed batches.

    Args:
        runs: The batches.
        num_draft_tokens: Draft length.
        prompts: Number of different prompts. Below 6 there is no interval, however many batches were made of them.
        verify_cost, round_cost, predicted_speedup, predicted_by_length: As in the row.
    """
    speed = latency_or_unknown(runs)
    speedup = speed.speedup
    if prompts < FEWEST_UNITS:
        speedup = Estimate(speedup.mean, float("nan"), float("nan"))
    return LoadRow(
        num_draft_tokens=num_draft_tokens,
        verify_cost=verify_cost,
        round_cost=round_cost,
        predicted_speedup=predicted_speedup,
        speedup=speedup,
        baseline_tokens_per_second=speed.baseline.tokens_per_second,
        speculative_tokens_per_second=speed.speculative.tokens_per_second,
        batches=len(runs),
        prompts=prompts,
        predicted_by_length=predicted_by_length,
    )


def load_section(
    rows: Mapping[int, LoadRow], costs: Mapping[int, Costs] | None = None, predicted: Mapping[int, float] | None = None
) -> Load:
    """`load` of the report.

    Args:
        rows: Batch size -> row, from the smallest on.
        costs: Batch size -> costs; None for real engines.
        predicted: Draft length -> predicted tokens per target call; None for real engines.
    """
    means = {size: row.speedup.mean for size, row in rows.items()}
    expected = {size: row.predicted_speedup for size, row in rows.items()}
    known = all(row.speedup.has_interval for row in rows.values())
    stops = _from_where(rows, [row.speedup.low <= 1 for row in rows.values()]) if known else None
    schedule = None
    if costs and predicted:
        schedule = draft_schedule(costs, predicted, stops, rows if known else {})
    return Load(
        batch=dict(rows),
        stops_paying_at=stops,
        predicted_to_stop_at=_from_where(rows, [value <= 1 for value in expected.values()]),
        crossing=crossing(means),
        predicted_crossing=crossing(expected),
        why=_why(rows, known, stops),
        num_speculative_tokens_per_batch_size=schedule,
    )


def _from_where(sizes: Mapping[int, LoadRow], is_so: Sequence[bool]) -> int | None:
    """The smallest size from which on it is so at every larger one; None where it is not at the largest."""
    found = None
    for size, here in zip(reversed(list(sizes)), reversed(is_so), strict=True):
        if not here:
            break
        found = size
    return found


def crossing(speedups: Mapping[int, float]) -> float | None:
    """The batch at which a speed-up falls to 1 for good, on a straight line over log2 of the batch.

    Args:
        speedups: Batch size -> speed-up, from the smallest on.

    Returns:
        None where the last is above 1, or all are at most 1.
    """
    sizes, values = list(speedups), list(speedups.values())
    after = next((place for place in reversed(range(len(values))) if values[place] > 1), None)
    if after is None or after == len(values) - 1:
        return None
    above, below = values[after] - 1, 1 - values[after + 1]
    share = above / (above + below)
    return float(2 ** (math.log2(sizes[after]) * (1 - share) + math.log2(sizes[after + 1]) * share))


def draft_schedule(
    costs: Mapping[int, Costs],
    predicted: Mapping[int, float],
    stops_paying_at: int | None,
    measured: Mapping[int, LoadRow] | None = None,
) -> list[tuple[int, int, int]] | None:
    """The best draft length of every batch up to the largest measured one, as ranges with equal lengths.

    Args:
        costs: Batch size -> costs; seconds between measured sizes are interpolated.
        predicted: Draft length -> predicted tokens per target call.
        stops_paying_at: Batch from which on nothing is drafted, whatever is predicted.
        measured: Batch size -> row with an interval: where drafting pays at both sizes around a batch, something is
            drafted there, whatever is predicted; where it pays at neither, nothing is.

    Returns:
        (first batch, last batch, draft tokens) from 1 on; None where nothing is to be drafted at any batch.
    """
    sizes = sorted(costs)
    steps = [costs[size].target_step_seconds for size in sizes]
    rounds = {
        length: [
            costs[size].round_cost(length, predicted[length]) * step for size, step in zip(sizes, steps, strict=True)
        ]
        for length in predicted
    }
    ranges: list[tuple[int, int, int]] = []
    for batch in range(1, sizes[-1] + 1):
        step = float(np.interp(batch, sizes, steps))
        gains = {length: predicted[length] * step / float(np.interp(batch, sizes, rounds[length])) for length in rounds}
        best = max(gains, key=lambda length: gains[length])
        if gains[best] <= 1:
            best = 0
        around = _around(measured or {}, batch)
        if around and all(row.speedup.low > 1 for row in around):
            best = best or around[0].num_draft_tokens
        elif (around and all(row.speedup.low <= 1 for row in around)) or batch >= (stops_paying_at or math.inf):
            best = 0
        if ranges and ranges[-1][2] == best:
            ranges[-1] = (ranges[-1][0], batch, best)
        else:
            ranges.append((batch, batch, best))
    return ranges if any(length for _, _, length in ranges) else None


def _around(rows: Mapping[int, LoadRow], batch: int) -> list[LoadRow]:
    """The rows of the nearest measured sizes: the largest up to the batch, the smallest from it on."""
    below, above = [size for size in rows if size <= batch], [size for size in rows if size >= batch]
    return [rows[size] for size in (*([max(below)] if below else []), *([min(above)] if above else []))]


def _why(rows: Mapping[int, LoadRow], known: bool, stops: int | None) -> str:
    (first, *_), (*_, last) = rows, rows
    if not known:
        prompts = min(row.prompts for row in rows.values())
        return (
            f"undecided: an interval needs {FEWEST_UNITS} timed batches of {FEWEST_UNITS} prompts or more, and there "
            f"are {prompts} prompts; raise --num-prompts and --latency-prompts"
        )
    if stops is None:
        return f"drafting pays up to the largest measured batch: {_measured(last, rows[last])}"
    if stops == first:
        best = max(rows, key=lambda size: rows[size].speedup.mean)
        return f"drafting pays at no measured batch, at most {_measured(best, rows[best])}"
    before = max(size for size in rows if size < stops)
    return f"drafting stops paying at batch {stops}: {_measured(before, rows[before])}, {_measured(stops, rows[stops])}"


def _measured(size: int, row: LoadRow) -> str:
    speedup = row.speedup
    return f"{speedup.mean:.2f}x [{speedup.low:.2f}, {speedup.high:.2f}] at {size}"
