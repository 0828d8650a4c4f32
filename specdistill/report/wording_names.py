"""Short names of models for everything but the setup, where they stand in full."""

from __future__ import annotations

import re
from typing import NamedTuple

from specdistill.evaluation.report import Report


class Names(NamedTuple):
    """Short names of a report's models; None where there is no such model."""

    target: str
    draft: str
    compare: str | None
    compare_target: str | None


def short_names(report: Report) -> Names:
    """The last parts of the models' names: as many of them as it takes to tell the models apart."""
    compare, other = report.compare, report.compare_target
    full = (
        report.target.name,
        report.draft.name,
        None if compare is None else compare.draft.name,
        None if other is None else other.target.name,
    )
    for parts in range(1, 9):
        short = [None if name is None else short_name(name, parts) for name in full]
        known = [name for name in short if name is not None]
        if len(set(known)) == len({name for name in full if name is not None}):
            return Names(known[0], known[1], short[2], short[3])
    return Names(*full)


def short_name(name: str, parts: int = 1) -> str:
    """The last parts of a path or hub id; the name itself where it has no parts.

    Args:
        name: Hub id, directory or file.
        parts: How many parts to keep.
    """
    pieces = [piece for piece in re.split(r"[/\\]", name) if piece]
    if len(pieces) >= 3 and pieces[-2] == "snapshots":
        # A snapshot in the hub's cache is named by a hash; the folder above says which model it is.
        pieces = pieces[-3].removeprefix("models--").split("--")
    return "/".join(pieces[-parts:]) or name
