"""Draws the study's plots into docs/plots from the committed results.

python benchmarks/tables/study_plots.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.bench_runs import DRIFTED_RUNS, present_runs
from benchmarks.support.paths import PLOTS
from benchmarks.support.results import load_result

COLOURS = ("#0b6e99", "#d9822b", "#5b8c5a", "#8a5a9b")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Equal results are equal files.
    "svg.hashsalt": "specdistill",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def draw_learning(axes: Axes, report: dict[str, Any]) -> None:
    names = [name for name in ("fkl-2", "fkl-4", "fkl-8", "long-4") if name in report["rows"]]
    for name, colour in zip(names, COLOURS, strict=False):
        entries = report["rows"][name]["heldout"]
        steps, alphas = ([entry[key] for entry in entries] for key in ("step", "sampled"))
        axes.plot(steps, alphas, "o-", color=colour, label=name)
    axes.set(xlabel="training step (8 answers each)", ylabel="alpha, sampled, held out", ylim=(0, 1))
    axes.legend(frameon=False)


def draw_speed(axes: Axes, report: dict[str, Any]) -> None:
    present = present_runs(report["bench"], DRIFTED_RUNS)
    runs = [run for run in present if run.pack == "none" and run.temperature == 0]
    axes.axhline(1, color="#b8c2cc", linewidth=1.5)
    for run, colour in zip(runs, COLOURS, strict=False):
        row = report["bench"][run.name]
        predicted = {int(length): value for length, value in row["predicted_speedup"].items()}
        axes.plot(list(predicted), list(predicted.values()), color=colour, label=run.row)
        mean, (low, high) = row["speedup"]["mean"], row["speedup"]["ci95"]
        axes.errorbar(
            [row["num_draft_tokens"]], [mean], yerr=[[mean - low], [high - mean]], fmt="s", color=colour, capsize=4
        )
    axes.set(xlabel="draft tokens per target call", ylabel="speed-up (line: predicted, square: measured)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def draw_growth(axes: Axes, report: dict[str, Any]) -> None:
    lengths = {int(length): cost for length, cost in report["draft_length"].items()}
    axes.plot(
        [length + 1 for length in lengths], list(lengths.values()), "o-", color=COLOURS[0], label="one target pass"
    )
    axes.plot([1, 16], [1, 16], color="#b8c2cc", label="as many single steps")
    axes.set(xlabel="tokens in the pass", ylabel="time, in single steps", xlim=(1, 16), ylim=(0, 8))
    axes.legend(frameon=False)


@dataclass(frozen=True)
class Plot:
    """A plot and the result file that it shows."""

    name: str
    source: str
    draw: Callable[[Axes, dict[str, Any]], None]
    needs_bench: bool = False
    """Left out until the study's drafts are benched."""


DRAWN = (
    Plot("study_learning", "drifted.json", draw_learning),
    Plot("study_speed", "drifted.json", draw_speed, needs_bench=True),
    Plot("growth_check", "growth.json", draw_growth),
)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    PLOTS.mkdir(exist_ok=True)
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    for plot in DRAWN:
        report = load_result(plot.source)
        if plot.needs_bench and not report["bench"]:
            continue
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 3.8), layout="constrained")
            plot.draw(figure.subplots(), report)
            figure.savefig(PLOTS / f"{plot.name}.svg", metadata=metadata)


if __name__ == "__main__":
    main()
