"""Several drafts side by side, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from specdistill.evaluation.report import Report
from specdistill.report.wording_leaderboard import leader, leaderboard_table


def print_leaderboard(console: Console, report: Report) -> None:
    """Prints the leaderboard of --compare."""
    lines = leaderboard_table(report)
    if not lines or not report.leaderboard:
        return
    table = Table(title="drafts on the same answers, costs in plain target steps")
    for name in lines[0]:
        table.add_column(name, justify="left" if name == "draft" else "right")
    for line in lines[1:]:
        table.add_row(*line)
    console.print(table)
    console.print(leader(report.leaderboard), soft_wrap=True)
