"""Several drafts side by side, in words; the same for terminal and HTML page."""

from __future__ import annotations

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.statistics import Estimate
from specdistill.report.wording import estimate, number

_COLUMNS = {
    "draft": lambda row: row.draft,
    "parameters": lambda row: f"{row.parameters / 1e6:.1f}M",
    "alpha [95 %]": lambda row: estimate(row.alpha),
    "minus --draft": lambda row: _signed(row.alpha_minus_draft),
    "tokens per call, predicted": lambda row: estimate(row.predicted_mean_acceptance_length),
    "draft step": lambda row: _number(row.cost_ratio, 3),
    "best length": lambda row: "" if row.best_num_draft_tokens is None else str(row.best_num_draft_tokens),
    "speed-up, predicted": lambda row: _number(row.predicted_speedup, 2),
    "tokens per call, counted": lambda row: (
        "" if row.mean_acceptance_length is None else estimate(row.mean_acceptance_length)
    ),
    "speed-up, measured": lambda row: "" if row.speedup is None else estimate(row.speedup, 2),
    "speed-up minus --draft": lambda row: _signed(row.speedup_minus_draft, 2),
}
"""Name of each column -> its cell."""


_COMPACT = {
    "draft": lambda row: row.draft,
    "alpha": lambda row: number(row.alpha.mean, 3),
    "minus --draft": lambda row: "" if row.speedup is not None else _signed(row.alpha_minus_draft, 2),
    "tokens": lambda row: number((row.mean_acceptance_length or row.predicted_mean_acceptance_length).mean),
    "step": lambda row: _number(row.cost_ratio, 2),
    "predicted": lambda row: _best(row),
    "speed-up": lambda row: "" if row.speedup is None else estimate(row.speedup, 2),
    "its minus": lambda row: _signed(row.speedup_minus_draft, 2),
}
"""The same for 80 columns: the other intervals are in the JSON and on the page."""


def leaderboard_table(report: Report, *, compact: bool = False) -> list[tuple[str, ...]]:
    """Names of the columns, then a line per draft; columns without any cell are left out. Empty without --compare."""
    columns = _COMPACT if compact else _COLUMNS
    lines = [tuple(cell(row) for cell in columns.values()) for row in report.leaderboard or []]
    filled = [place for place in range(len(columns)) if any(line[place] for line in lines)]
    return [tuple(line[place] for place in filled) for line in (tuple(columns), *lines)] if lines else []


def leader(rows: list[LeaderboardRow]) -> str:
    """The first draft in a sentence, and whether its lead over --draft is more than chance."""
    first = rows[0]
    what = "measured" if first.speedup is not None else "predicted"
    paired = first.speedup_minus_draft if first.speedup is not None else first.alpha_minus_draft
    if paired is None:
        return f"--draft is the fastest of them, as {what}"
    unit = "speed-up" if first.speedup is not None else "alpha"
    is_clear = paired.has_interval and paired.low > 0
    certain = "more than chance" if is_clear else "no more than chance may give"
    return f"the fastest as {what} is {first.draft}: {unit} {estimate(paired, sign='+')} over --draft, {certain}"


def _best(row: LeaderboardRow) -> str:
    """Predicted speed-up, and the draft length that gives it."""
    return "" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f} at {row.best_num_draft_tokens}"


def _signed(value: Estimate | None, digits: int = 3) -> str:
    return "" if value is None else estimate(value, digits, "+")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else number(value, digits)
