"""The plot of speed over the batch."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from specdistill.evaluation.report import Report

CAPTION = (
    "Predicted from step costs of each batch, and measured with 95 % intervals over batches. Below the line at 1 the "
    "draft slows serving down."
)


def load_plot(axes: Axes, report: Report, ink: tuple[str, str, str]) -> None:
    """Speed-up over the batch, predicted and measured.

    Args:
        axes: Where to draw.
        report: A report with `load`.
        ink: Colours of the line at 1, the prediction and the measurement.
    """
    rows = {} if report.load is None else report.load.batch
    sizes, (quiet, accent, second) = list(rows), ink
    axes.axhline(1, color=quiet, linewidth=1.5)
    axes.plot(sizes, [row.predicted_speedup for row in rows.values()], color=accent, marker="o", label="predicted")
    speedups = [row.speedup for row in rows.values()]
    spread = [[one.mean - one.low for one in speedups], [one.high - one.mean for one in speedups]]
    known = all(math.isfinite(low) for low in spread[0])
    means = [one.mean for one in speedups]
    axes.errorbar(sizes, means, yerr=spread if known else None, color=second, marker="s", capsize=4, label="measured")
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="rows decoded together", ylabel="speed-up")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
