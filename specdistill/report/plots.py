"""The report's plots as inline SVG."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from specdistill.evaluation.report import Report
from specdistill.evaluation.statistics import Estimate
from specdistill.report.plots_load import CAPTION as LOAD_CAPTION
from specdistill.report.plots_load import load_plot
from specdistill.report.wording import alpha_rows

INK, ACCENT, SECOND, QUIET = "#1c2733", "#0b6e99", "#d9822b", "#b8c2cc"

_STYLE: dict[Any, Any] = {
    # Text stays text: smaller files, and a phone zooms it sharply.
    "svg.fonttype": "none",
    # Deterministic element ids, so that equal reports are equal files.
    "svg.hashsalt": "specdistill",
    # A dollar in a category's name is a dollar.
    "text.parse_math": False,
    "font.size": 13,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "text.color": INK,
}


def all_plots(report: Report) -> list[tuple[str, str, str]]:
    """Draws every plot that the report has data for: (title, SVG, one sentence that says how to read it)."""
    plots = []
    if report.acceptance.by_position:
        plots.append(
            (
                "Acceptance by position",
                _draw(_positions, report),
                "Joint: share of rounds in which the first i draft tokens were all kept. Conditional: share of those "
                "that kept i-1 which also kept the i-th. From real decoding.",
            )
        )
    if report.economics.predicted_speedup:
        plots.append(
            (
                "Speed-up over draft length",
                _draw(_speedups, report),
                "Predicted from one scoring pass and measured step costs; the dot is the measured run with its 95 % "
                "interval. Below the line at 1 the draft slows serving down.",
            )
        )
    if report.acceptance.alpha:
        caption = "Share of draft tokens that each kind of server accepts, with 95 % intervals over prompts."
        plots.append(("Alpha by rule", _draw(_alphas, report), caption))
    if len(report.acceptance.by_category) > 1:
        plots.append(("Alpha by category", _draw(_categories, report), "Kinds of prompts that the draft is good at."))
    if report.lenience_sweep:
        caption = "Each dot is one lenience, 1 the exact rule; the further to the right, the faster. 95 % intervals."
        plots.append(("What lenience trades", _draw(lenience_plot, report), caption))
    if report.load is not None:
        plots.append(("Speed-up under load", _draw(_loads, report), LOAD_CAPTION))
    return plots


def _draw(paint, report: Report) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        paint(figure.subplots(), report)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Width and height in points would defeat the page's own sizing; the viewBox keeps the shape.
    return re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )


def _positions(axes: Axes, report: Report) -> None:
    joint, conditional = report.acceptance.by_position, report.acceptance.by_position_conditional
    places = range(1, len(joint) + 1)
    axes.bar(places, joint, color=ACCENT, width=0.6, label="joint")
    axes.plot(places, conditional, color=SECOND, marker="o", label="conditional")
    axes.set(xlabel="position in the draft", ylabel="accepted", ylim=(0, 1.02), xticks=list(places))
    axes.legend(frameon=False)


def _speedups(axes: Axes, report: Report) -> None:
    predicted, measured = report.economics.predicted_speedup, report.latency.speedup
    axes.axhline(1, color=QUIET, linewidth=1.5)
    axes.plot(list(predicted), list(predicted.values()), color=ACCENT, marker="o", label="predicted")
    if report.latency.is_timed:
        length, spread = report.setup.num_draft_tokens, _spread([measured])
        axes.errorbar([length], [measured.mean], yerr=spread, color=SECOND, marker="s", capsize=4, label="measured")
    axes.set(xlabel="draft tokens per target call", ylabel="speed-up", xticks=list(predicted))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _alphas(axes: Axes, report: Report) -> None:
    rows = alpha_rows(report)
    series = [(report.draft.name, [row.alpha for row in rows], ACCENT)]
    if report.compare is not None:
        series.insert(0, (report.compare.draft.name, [row.other for row in rows if row.other], QUIET))
    width = 0.7 / len(series)
    for place, (name, alphas, colour) in enumerate(series):
        left = [index + (place - (len(series) - 1) / 2) * width for index in range(len(rows))]
        means = [alpha.mean for alpha in alphas]
        axes.bar(left, means, width, yerr=_spread(alphas), color=colour, capsize=3, label=_short(name))
    labels = [row.rule.replace(", at temperature", "\nat temperature") for row in rows]
    axes.set(ylabel="alpha", ylim=(0, 1.02), xticks=range(len(rows)), xticklabels=labels)
    if len(series) > 1:
        axes.legend(frameon=False)


def _categories(axes: Axes, report: Report) -> None:
    rule, rows = report.setup.predicting_rule, report.acceptance.by_category
    places = range(len(rows))
    axes.barh(list(places), [scores.alpha(rule) for scores in rows.values()], 0.6, color=ACCENT)
    axes.set(xlabel=f"alpha, {rule}", xlim=(0, 1), yticks=list(places), yticklabels=list(rows))


def _loads(axes: Axes, report: Report) -> None:
    load_plot(axes, report, (QUIET, ACCENT, SECOND))


def lenience_plot(axes: Axes, report: Report) -> None:
    """DistillSpec's last figure: speed-up against the score, or without one against the share of changed tokens."""
    rows = report.lenience_sweep or []
    scored = all(row.score is not None for row in rows)
    heights = [row.score if scored and row.score is not None else row.changed_tokens for row in rows]
    axes.errorbar(
        [row.speedup.mean for row in rows],
        [height.mean for height in heights],
        xerr=_spread([row.speedup for row in rows]),
        yerr=_spread(heights),
        color=ACCENT,
        marker="o",
        capsize=3,
    )
    for row, height in zip(rows, heights, strict=True):
        axes.annotate(f"{row.lenience:g}", (row.speedup.mean, height.mean), (6, 6), textcoords="offset points")
    axes.set(xlabel="speed-up", ylabel="score" if scored else "share of changed tokens")


def _spread(estimates: list[Estimate]) -> list[list[float]]:
    """Lengths of the error bars below and above, [2, estimates]."""
    below = [estimate.mean - estimate.low for estimate in estimates]
    return [below, [estimate.high - estimate.mean for estimate in estimates]]


def _short(name: str) -> str:
    return name if len(name) <= 28 else "…" + name[-27:]
