"""Several drafts side by side, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from specdistill.evaluation.report import Report
from specdistill.report.wide_table import broken
from specdistill.report.wording_leaderboard import leader, leaderboard_remarks, leaderboard_table

_WIDE = 110
"""Columns of a terminal from which on the whole table fits."""


def print_leaderboard(console: Console, report: Report) -> None:
    """Prints the leaderboard of --compare."""
    lines = leaderboard_table(report, compact=True, wide=console.width >= _WIDE)
    if not lines or not report.leaderboard:
        return
    table = Table(title="drafts on the same answers")
    for name in lines[0]:
        # A long path goes on in the next line, and leaves numbers whole.
        is_name = name == "draft"
        table.add_column(name, justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    # What the other columns, their borders and spaces leave to the names.
    width = console.width - 4 - sum(max(len(line[place]) for line in lines) + 3 for place in range(1, len(lines[0])))
    for line in lines[1:]:
        table.add_row(broken(line[0], width), *line[1:])
    console.print(table)
    for line in (*leaderboard_remarks(report), leader(report.leaderboard, report.setup.num_draft_tokens)):
        console.print(line, soft_wrap=True)
