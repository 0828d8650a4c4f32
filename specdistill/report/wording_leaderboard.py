"""Several drafts side by side, in words; the same for terminal and HTML page."""

from __future__ import annotations

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.statistics import Estimate
from specdistill.report.wording import estimate, number
from specdistill.report.wording_verdict import tokens

_COLUMNS = {
    "draft": lambda row: row.draft,
    "kind": lambda row: row.kind or "",
    "parameters": lambda row: f"{row.parameters / 1e6:.1f}M",
    "alpha [95 %]": lambda row: estimate(row.alpha) + _star(row),
    "alpha minus --draft": lambda row: _signed(row.alpha_minus_draft),
    "tokens per call, predicted": lambda row: estimate(row.predicted_mean_acceptance_length),
    "tokens minus --draft": lambda row: _signed(row.tokens_minus_draft),
    "draft step": lambda row: _number(row.cost_ratio, 3),
    "round": lambda row: _number(row.round_cost, 2),
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
    "alpha": lambda row: number(row.alpha.mean, 3) + _star(row),
    "alpha minus --draft": lambda row: "" if row.speedup is not None else _signed(row.alpha_minus_draft, 2),
    "tokens": lambda row: number((row.mean_acceptance_length or row.predicted_mean_acceptance_length).mean),
    "minus --draft": lambda row: "" if row.speedup is not None else _signed(row.tokens_minus_draft, 2),
    "round": lambda row: _number(row.round_cost, 2),
    "predicted": lambda row: _best(row),
    "speed-up": lambda row: "" if row.speedup is None else estimate(row.speedup, 2),
    "its minus": lambda row: _signed(row.speedup_minus_draft, 2),
}
"""The same for a terminal: the other intervals are in the JSON and on the page."""
_WIDE_ONLY = "alpha minus --draft"
"""The column that 80 columns have no room for: tokens per call and costs decide, and hold for drafts of all kinds."""


def leaderboard_table(report: Report, *, compact: bool = False, wide: bool = True) -> list[tuple[str, ...]]:
    """Names of the columns, then a line per draft; columns without any cell are left out. Empty without --compare.

    Args:
        report: The report.
        compact: Whether most intervals are left out, as for a terminal.
        wide: Whether a compact table may be wider than 80 columns.
    """
    columns = dict(_COMPACT if compact else _COLUMNS)
    if compact and not wide:
        del columns[_WIDE_ONLY]
    lines = [tuple(cell(row) for cell in columns.values()) for row in report.leaderboard or []]
    filled = [place for place in range(len(columns)) if any(line[place] for line in lines)]
    return [tuple(line[place] for place in filled) for line in (tuple(columns), *lines)] if lines else []


def leaderboard_remarks(report: Report) -> list[str]:
    """How to read the table, in sentences."""
    rows, length = report.leaderboard or [], report.setup.num_draft_tokens
    remarks = []
    if any(row.round_cost is not None for row in rows):
        them = "it" if length == 1 else "them"
        way = "in one pass or in a step each" if any(row.kind for row in rows) else "in a step each"
        remarks.append(
            f"tokens: per target call with {tokens(length, 'draft')}; round: drafting {them} {way}, and checking, in "
            "plain target steps"
        )
    if any(row.kind for row in rows):
        remarks.append(
            "* alpha of a round's first guess only, and later guesses are accepted less: compare drafts of different "
            "kinds by tokens and round"
        )
    return remarks


def others_remark(report: Report) -> str | None:
    """Says below the alphas where those of further drafts stand; None where all are shown."""
    shown = 1 if report.compare is None else 2
    others = len(report.leaderboard or []) - shown
    if others < 1:
        return None
    named = "1 other draft of --compare is" if others == 1 else f"{others} other drafts of --compare are"
    return f"{named} in the table of drafts below"


def leader(rows: list[LeaderboardRow], length: int) -> str:
    """The first draft in a sentence, and whether its lead over --draft is more than chance.

    Drafts whose guesses depend on the round are compared by tokens per call and costs: alpha is of the first guess.

    Args:
        rows: The table, the first draft first.
        length: Draft length of its tokens per call and rounds.
    """
    first = rows[0]
    what = "measured" if first.speedup is not None else "predicted"
    paired = first.speedup_minus_draft if first.speedup is not None else first.alpha_minus_draft
    if paired is None:
        return f"--draft is the fastest of them, as {what}"
    fastest = f"the fastest as {what} is {first.draft}"
    if first.speedup is None and any(row.kind for row in rows):
        own = next((row for row in rows if row.tokens_minus_draft is None), None)
        return fastest + _lead_of_kinds(first, own, length)
    unit = "speed-up" if first.speedup is not None else "alpha"
    is_clear = paired.has_interval and paired.low > 0
    certain = "more than chance" if is_clear else "no more than chance may give"
    return f"{fastest}: {unit} {estimate(paired, sign='+')} over --draft, {certain}"


def _lead_of_kinds(first: LeaderboardRow, own: LeaderboardRow | None, length: int) -> str:
    lengths = {row.best_num_draft_tokens for row in (first, own) if row is not None}
    if lengths <= {length, None} or own is None:
        where = ":"
    else:
        # It leads at a length of its own: at the common one it may be behind.
        where = f", {_best(first)} where --draft has {_best(own)}. With {tokens(length, 'draft')}:"
    words = f"{where} tokens per target call {_signed(first.tokens_minus_draft)} against --draft"
    if own is None or own.round_cost is None or first.round_cost is None:
        return words
    return f"{words}, and a round takes it {first.round_cost:.2f} target steps where --draft takes {own.round_cost:.2f}"


def _star(row: LeaderboardRow) -> str:
    """Marks an alpha that is that of a round's first guess only."""
    return "*" if row.kind else ""


def _best(row: LeaderboardRow) -> str:
    """Predicted speed-up, and the draft length that gives it."""
    return "" if row.predicted_speedup is None else f"{row.predicted_speedup:.2f} at {row.best_num_draft_tokens}"


def _signed(value: Estimate | None, digits: int = 3) -> str:
    return "" if value is None else estimate(value, digits, "+")


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else number(value, digits)
