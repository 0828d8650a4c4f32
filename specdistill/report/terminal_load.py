"""Speed over the batch, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdistill.evaluation.report import Report
from specdistill.report.wording_load import HEADS, load_lines, load_remarks, vllm_setting


def print_load(console: Console, report: Report) -> None:
    """Prints the table of batch sizes, where drafting stops paying, and vLLM's setting."""
    lines = load_lines(report)
    if not lines:
        return
    table = Table(title="under load; costs in plain target steps of the same batch")
    table.add_column("batch")
    # Tokens per second are on the page: with them a line would be longer than 80 columns.
    for name in HEADS[:-2]:
        table.add_column(name, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(line.batch, *line.cells[:-2])
    console.print(table)
    for remark in load_remarks(report):
        console.print(remark, soft_wrap=True)
    setting = vllm_setting(report)
    if setting is not None:
        console.print(Text.assemble("for vLLM, by costs of this machine: ", (setting, "bold")), soft_wrap=True)
