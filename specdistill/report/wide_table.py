"""Tables with a column for each of many numbers, in as many pieces as the terminal's width asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

_SEPARATORS = re.compile(r"(?<=[/\\_.:-])")
"""A name may go on in the next line behind one of these."""
_BETWEEN = 3
"""Characters between two columns."""


def print_wide(
    console: Console, title: str, head: str, columns: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> None:
    """Prints a table, going on below where a line is full.

    Args:
        console: Where.
        title: Title, above the first piece.
        head: Head of the column with the rows' names.
        columns: Heads of the other columns.
        rows: Name -> a cell for each of them.
    """
    names = max(map(len, (head, *rows))) + _BETWEEN
    cell = max(map(len, (*columns, *(text for cells in rows.values() for text in cells)))) + _BETWEEN
    at_most = max(1, (console.width - 1 - names) // cell)
    pieces = -(-len(columns) // at_most)
    each = -(-len(columns) // pieces)
    for start in range(0, len(columns), each):
        table = Table(title=title if start == 0 else None)
        table.add_column(head)
        for name in columns[start : start + each]:
            table.add_column(name, justify="right", no_wrap=True)
        for name, cells in rows.items():
            table.add_row(name, *cells[start : start + each])
        console.print(table)


def broken(name: str, width: int) -> str:
    """A name in lines that end behind a separator; only a part that is wider than a line is cut.

    Args:
        name: A path, or another name without spaces.
        width: Characters of a line.
    """
    lines = [""]
    for part in _SEPARATORS.split(name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)
