"""Result files: JSON in benchmarks/results, one per script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.support.paths import RESULTS


def load_result(name: str) -> Any:
    """One result file. Its keys are those that the script of the same name writes."""
    return json.loads((RESULTS / name).read_text())


def write_result(name: str, result: dict[str, Any], indent: int = 1) -> None:
    """Replaces one result file."""
    write_result_to(RESULTS / name, result, indent)


def write_result_to(path: Path, result: dict[str, Any], indent: int = 1) -> None:
    """Writes a result to any path, in the form of the committed ones."""
    path.write_text(json.dumps(result, indent=indent) + "\n")


@dataclass(frozen=True)
class Interval:
    """An estimate as result files hold it: a mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Interval:
        """Reads `{"mean": ..., "ci95": [low, high]}`."""
        return cls(value["mean"], *value["ci95"])

    def overlaps(self, other: Interval) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and self.high >= other.low

    def text(self, places: int = 2, sign: str = "") -> str:
        """`mean [low, high]`, as tables show it."""
        mean, low, high = (f"{number:{sign}.{places}f}" for number in (self.mean, self.low, self.high))
        return f"{mean} [{low}, {high}]"
