"""Speed over the batch, in words; the same for terminal and HTML page."""

from __future__ import annotations

import json
import shlex
from typing import NamedTuple

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_load import LoadRow
from specdistill.evaluation.report_setup import EngineSetup
from specdistill.report.wording import estimate, number

HEADS = ("drafted", "check", "round", "predicted", "speed-up [95 %]", "tokens/s plain", "with draft")
"""Names of the columns behind the batch; costs are in plain target steps of the same batch."""


class LoadLine(NamedTuple):
    """One line of the table."""

    batch: str
    cells: tuple[str, ...]
    """One per entry of `HEADS`."""


def load_lines(report: Report) -> list[LoadLine]:
    """One line per batch size; empty where none was asked for. A star marks batches of prompts taken again."""
    if report.load is None:
        return []
    return [
        LoadLine(f"{size}{'*' if _repeats(size, row) else ''}", _cells(row)) for size, row in report.load.batch.items()
    ]


def _cells(row: LoadRow) -> tuple[str, ...]:
    return (
        str(row.num_draft_tokens),
        "" if row.verify_cost is None else number(row.verify_cost),
        number(row.round_cost),
        number(row.predicted_speedup),
        estimate(row.speedup, 2),
        number(row.baseline_tokens_per_second, 1),
        number(row.speculative_tokens_per_second, 1),
    )


def _repeats(size: int, row: LoadRow) -> bool:
    return size * row.batches > row.prompts


def load_remarks(report: Report) -> list[str]:
    """The result in sentences: where drafting stops paying, by measurement and by prediction."""
    load = report.load
    if load is None:
        return []
    remarks = [load.why]
    if load.predicted_crossing is not None or load.crossing is not None:
        places = (
            number(value, 1) if value is not None else "none" for value in (load.predicted_crossing, load.crossing)
        )
        predicted, measured = places
        remarks.append(f"the speed-up falls to 1 at batch {predicted} as predicted from costs, {measured} as measured")
    if any(_repeats(size, row) for size, row in load.batch.items()):
        remarks.append(
            "* these batches need more prompts than there are, so prompts were taken again, in another order and with "
            "other seeds; the intervals say less about other prompts"
        )
    return remarks


def vllm_setting(report: Report) -> str | None:
    """vLLM's flag with a draft length for every batch, ready to paste; None where there is no schedule."""
    load = report.load
    schedule = None if load is None else load.num_speculative_tokens_per_batch_size
    if schedule is None or isinstance(report.setup, EngineSetup):
        return None
    settings = {
        "method": "draft_model",
        "model": report.draft.name,
        "num_speculative_tokens": max(length for _, _, length in schedule),
        "num_speculative_tokens_per_batch_size": [list(entry) for entry in schedule],
    }
    return f"--speculative-config {shlex.quote(json.dumps(settings))}"
