"""Which drafts the studies bench, and how. Studies run these; tables and plots read their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class BenchRun:
    """One `specdistill bench` of a row's first seed."""

    row: str
    pack: str = "none"
    temperature: int = 0

    @property
    def name(self) -> str:
        """Key in the study's result file."""
        return f"{self.row}-{self.pack}-{self.temperature}"


DEPTHS = (2, 4, 8)
"""Layers of the studies' cuts."""


def depth_row(layers: int) -> str:
    """The row of `methods.py` that trains a cut of so many layers."""
    return f"depth-{layers}"


METHODS_RUNS = tuple(BenchRun(depth_row(layers)) for layers in DEPTHS)
DRIFTED_RUNS = (
    BenchRun("long-4"),
    BenchRun("long-4", pack="float32"),
    BenchRun("long-4", temperature=1),
    BenchRun("long-4", pack="float16"),
    *(BenchRun(f"fkl-{depth}", pack) for depth in DEPTHS for pack in ("none", "float32")),
)


def present_runs(results: Mapping[str, Any], runs: Sequence[BenchRun]) -> list[BenchRun]:
    """The runs that a result file holds, in its order."""
    by_name = {run.name: run for run in runs}
    return [by_name[name] for name in results]
