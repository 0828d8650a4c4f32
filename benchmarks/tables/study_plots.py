"""Draws the plots of the README and the study into docs/plots from the committed results.

python benchmarks/tables/study_plots.py           writes them
python benchmarks/tables/study_plots.py --check   fails if one is out of date (a test runs this)
"""

from __future__ import annotations

import argparse
import io
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
from benchmarks.tables.front_plot import DARK, LIGHT, draw_front

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
    draw: Callable[[Figure, dict[str, Any]], None]
    size: tuple[float, float] = (6.4, 3.8)
    needs_bench: bool = False
    """Left out until the study's drafts are benched."""


def on_axes(draw: Callable[[Axes, dict[str, Any]], None]) -> Callable[[Figure, dict[str, Any]], None]:
    """A plot that needs one pair of axes."""
    return lambda figure, report: draw(figure.subplots(), report)


DRAWN = (
    Plot("study_learning", "drifted.json", on_axes(draw_learning)),
    Plot("study_speed", "drifted.json", on_axes(draw_speed), needs_bench=True),
    Plot("growth_check", "growth.json", on_axes(draw_growth)),
    Plot("front_light", "engines.json", lambda figure, report: draw_front(figure, report, LIGHT), (6.4, 2.5)),
    Plot("front_dark", "engines.json", lambda figure, report: draw_front(figure, report, DARK), (6.4, 2.5)),
)


def svg(plot: Plot, report: dict[str, Any]) -> str:
    """The plot as a file's text."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=plot.size, layout="constrained")
        plot.draw(figure, report)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a plot is out of date")
    check = parser.parse_args().check
    PLOTS.mkdir(exist_ok=True)
    for plot in DRAWN:
        report = load_result(plot.source)
        if plot.needs_bench and not report["bench"]:
            continue
        path, text = PLOTS / f"{plot.name}.svg", svg(plot, report)
        if not check:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"docs/plots/{path.name} is out of date: run `python benchmarks/tables/study_plots.py`")


if __name__ == "__main__":
    main()
