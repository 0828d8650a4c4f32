"""Draws the study's plots into docs/plots from the committed results.

python benchmarks/study_plots.py
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from smollm2 import RESULTS

PLOTS = Path(__file__).parents[1] / "docs/plots"
COLOURS = ("#0b6e99", "#d9822b", "#5b8c5a", "#8a5a9b")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Equal results are equal files.
    "svg.hashsalt": "specdistill",
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def learning(axes: Axes, report: dict[str, Any]) -> None:
    names = [name for name in ("fkl-2", "fkl-4", "fkl-8", "long-4") if name in report["rows"]]
    for name, colour in zip(names, COLOURS, strict=False):
        looks = report["rows"][name]["heldout"]
        axes.plot([each["step"] for each in looks], [each["sampled"] for each in looks], "o-", color=colour, label=name)
    axes.set(xlabel="training step (8 answers each)", ylabel="alpha, sampled, held out", ylim=(0, 1))
    axes.legend(frameon=False)


def speed(axes: Axes, report: dict[str, Any]) -> None:
    names = [name for name in report["bench"] if name.endswith("-none-0")]
    axes.axhline(1, color="#b8c2cc", linewidth=1.5)
    for name, colour in zip(names, COLOURS, strict=False):
        row = report["bench"][name]
        predicted = {int(length): value for length, value in row["predicted_speedup"].items()}
        axes.plot(list(predicted), list(predicted.values()), color=colour, label=name.removesuffix("-none-0"))
        mean, (low, high) = row["speedup"]["mean"], row["speedup"]["ci95"]
        axes.errorbar(
            [row["num_draft_tokens"]], [mean], yerr=[[mean - low], [high - mean]], fmt="s", color=colour, capsize=4
        )
    axes.set(xlabel="draft tokens per target call", ylabel="speed-up (line: predicted, square: measured)")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def growth(axes: Axes, report: dict[str, Any]) -> None:
    lengths = {int(length): cost for length, cost in report["draft_length"].items()}
    axes.plot(
        [length + 1 for length in lengths], list(lengths.values()), "o-", color=COLOURS[0], label="one target pass"
    )
    axes.plot([1, 16], [1, 16], color="#b8c2cc", label="as many single steps")
    axes.set(xlabel="tokens in the pass", ylabel="time, in single steps", xlim=(1, 16), ylim=(0, 8))
    axes.legend(frameon=False)


DRAWN: dict[str, tuple[str, Callable[[Axes, dict[str, Any]], None]]] = {
    "study_learning": ("drifted.json", learning),
    "study_speed": ("drifted.json", speed),
    "growth_check": ("growth.json", growth),
}


def main() -> None:
    PLOTS.mkdir(exist_ok=True)
    for name, (source, paint) in DRAWN.items():
        report = json.loads((RESULTS / source).read_text())
        if name == "study_speed" and not report["bench"]:
            continue
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(6.4, 3.8), layout="constrained")
            paint(figure.subplots(), report)
            figure.savefig(
                PLOTS / f"{name}.svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
            )


if __name__ == "__main__":
    main()
