"""Cells of the generated tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.support.results import Interval


def interval_cell(value: Mapping[str, Any], sign: str = "", places: int = 3) -> str:
    """`mean [low, high]` of an estimate as result files hold it."""
    return Interval.from_json(value).text(places, sign)


def range_cell(values: list[float], places: int) -> str:
    """`lowest to highest`."""
    return f"{min(values):.{places}f} to {max(values):.{places}f}"


def table_row(cells: list[str]) -> str:
    """One line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"
