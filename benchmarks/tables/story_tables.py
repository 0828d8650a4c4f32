"""Tables of docs/stories, from benchmarks/results."""

from __future__ import annotations

from benchmarks.support.results import load_result
from benchmarks.tables.cells import interval_cell, table_row

STUDIES = (("methods.json", "over_start"), ("drifted.json", "over_warm"))
"""Result files, and the key of the differences over the common start."""
RULES = ("sampled", "argmax_draft")
REPRODUCED = {
    "DistillSpec, `rkl`": ("distillspec-rkl", "distillspec-rkl"),
    "DistillSpec, `jsd`": ("distillspec-jsd", "distillspec-jsd"),
    "DistillSpec, `tvd`": ("distillspec-tvd", None),
    "DistillSpec, `fkl`": ("distillspec-fkl", None),
    "`fkl` on the target's answers alone": ("target-fkl", "more-fkl"),
    "GKD, `jsd`, lambda 0.5": ("gkd", "gkd"),
    "SKD, K 5": ("skd-5", None),
    "SKD, K 25": ("skd-25", "skd-25"),
}
"""What a paper proposes -> its row in methods.json and in drifted.json."""


def reproduced_table() -> str:
    """Change of alpha by each paper's method, on both targets."""
    studies = [(load_result(name)["rows"], start) for name, start in STUDIES]
    lines = ["| | open: `sampled` | `argmax_draft` | one job: `sampled` | `argmax_draft` |", "|---|---|---|---|---|"]
    for label, names in REPRODUCED.items():
        cells = []
        for name, (rows, over) in zip(names, studies, strict=True):
            cells += ["" if name is None else interval_cell(rows[name][over][rule], "+") for rule in RULES]
        lines.append(table_row([label, *cells]))
    return "\n".join(lines)
