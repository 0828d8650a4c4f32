"""Where acceptance comes from, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdistill.evaluation.report import Report
from specdistill.report.wording import estimate
from specdistill.report.wording_buckets import bucket_rows, bucket_warnings


def print_buckets(console: Console, report: Report) -> None:
    """Prints the table of buckets and the warnings."""
    rows = bucket_rows(report)
    if rows:
        table = Table(title=f"where acceptance comes from, by the rule {report.setup.predicting_rule}")
        for name in ("by", "bucket", "tokens", "alpha [95 %]"):
            table.add_column(name, justify="left" if name == "by" else "right")
        kinds = [""] + [row.kind for row in rows]
        for before, row in zip(kinds, rows, strict=False):
            table.add_row("" if row.kind == before else row.kind, row.bucket, f"{row.tokens:,}", estimate(row.alpha))
        console.print(table)
    for warning in bucket_warnings(report):
        console.print(Text.assemble(("BEWARE", "bold red"), f": {warning}"), soft_wrap=True)
