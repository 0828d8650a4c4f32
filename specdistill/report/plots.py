"""The report's plots as inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
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
from specdistill.report.wording_names import short_names

INK, ACCENT, SECOND, QUIET = "#010203", "#010204", "#010205", "#010206"
"""Stand-ins for the page's colours, which follow its light or dark scheme."""
_VARIABLES = {INK: "var(--ink)", ACCENT: "var(--accent)", SECOND: "var(--second)", QUIET: "var(--faint)"}

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
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Error bars that name no colour.
    "lines.color": INK,
    # The page's own paper shows through.
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def all_plots(report: Report) -> list[tuple[str, str, str]]:
    """Draws every plot that the report has data for: (title, SVG, one sentence that says how to read it)."""
    plots = []

    def add(question: str, paint: Callable[[Axes, Report], None], caption: str) -> None:
        plots.append((question, _draw(paint, report, question), caption))

    if report.economics.predicted_speedup:
        caption = "Above the line at 1 the draft makes serving faster; the measured run has its 95 % interval."
        add("Which draft length is fastest?", _speedups, caption)
    if len(report.acceptance.by_position) > 1:
        caption = "How often the target keeps all tokens up to a position, and that token where it kept those before."
        add("How far do drafts get?", _positions, caption)
    if report.acceptance.alpha:
        caption = "Share of draft tokens that each kind of server accepts, with 95 % intervals over prompts."
        add("How often is a draft token accepted?", _alphas, caption)
    if len(report.acceptance.by_category) > 1:
        add(
            "Which prompts suit the draft?",
            _categories,
            "Share of draft tokens that are accepted, by category of prompt.",
        )
    if report.lenience_sweep:
        caption = "Each dot is one lenience, 1 the exact rule; the further to the right, the faster (95 % intervals)."
        add("What lenience trades", lenience_plot, caption)
    if report.load is not None:
        add("From which batch on does drafting stop paying?", _loads, LOAD_CAPTION)
    return plots


def _draw(paint: Callable[[Axes, Report], None], report: Report, title: str) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        paint(figure.subplots(), report)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    # Width and height in points would defeat the page's own sizing; the viewBox keeps the shape.
    opening, _, rest = svg.partition(">")
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{escape(title)}">{rest}'


def _positions(axes: Axes, report: Report) -> None:
    joint, conditional = report.acceptance.by_position, report.acceptance.by_position_conditional
    places = range(1, len(joint) + 1)
    axes.bar(places, joint, color=ACCENT, width=0.6, label="all tokens up to here")
    axes.plot(places, conditional, color=SECOND, marker="o", label="this token, if those before")
    axes.set(xlabel="position in the draft", ylabel="accepted", ylim=(0, 1.02), xticks=list(places))
    # Above the axes: bars of 1 leave no room inside.
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


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
    names = short_names(report)
    series = [(names.draft, [row.alpha for row in rows], ACCENT)]
    if report.compare is not None:
        series.insert(0, (names.compare or "", [row.other for row in rows if row.other], QUIET))
    width = 0.7 / len(series)
    for place, (name, alphas, colour) in enumerate(series):
        left = [index + (place - (len(series) - 1) / 2) * width for index in range(len(rows))]
        means = [alpha.mean for alpha in alphas]
        axes.bar(left, means, width, yerr=_spread(alphas), color=colour, ecolor=INK, capsize=3, label=_short(name))
    labels = [row.rule.replace(", at temperature", "\nat temperature") for row in rows]
    axes.set(ylabel="alpha", ylim=(0, 1.02), xticks=range(len(rows)), xticklabels=labels)
    if len(series) > 1:
        axes.legend(frameon=False)


def _categories(axes: Axes, report: Report) -> None:
    rule, rows = report.setup.predicting_rule, report.acceptance.by_category
    places = range(len(rows))
    axes.barh(list(places), [scores.alpha(rule) for scores in rows.values()], 0.6, color=ACCENT)
    axes.set(xlabel=f"alpha, {rule}", xlim=(0, 1), yticks=list(places), yticklabels=[_short(name) for name in rows])


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
