"""Fills the tables of the READMEs and the docs from benchmarks/results, so that no number is typed by hand.

python benchmarks/tables/readme_tables.py           writes them
python benchmarks/tables/readme_tables.py --check   fails if one is out of date (a test runs this)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.studies.bench_runs import DRIFTED_RUNS, METHODS_RUNS
from benchmarks.support.paths import ROOT
from benchmarks.tables import (
    baseline_tables,
    front_tables,
    goals_table,
    kernel_tables,
    kind_tables,
    quality_tables,
    speed_tables,
    story_tables,
)

Tables = dict[str, Callable[[], str]]
"""Name of the marked block -> the table in it."""

README_TABLES: Tables = {
    "front": front_tables.front_sentence,
    "results": front_tables.results_table,
    "kernels": front_tables.kernels_lines,
}
RESULTS_TABLES: Tables = {
    "peers": speed_tables.peers_table,
    "loss-op": speed_tables.loss_op_table,
    "engines": speed_tables.engines_table,
    "soft-labels": quality_tables.soft_labels_table,
    "methods": quality_tables.methods_table,
    "training": speed_tables.training_table,
    "packed-step": speed_tables.packed_step_table,
    "alpha": quality_tables.alpha_table,
    "speed": speed_tables.speed_table,
    "layers": quality_tables.layers_table,
    "lossless": speed_tables.lossless_line,
    "decoder": speed_tables.decoder_table,
}
KERNEL_TABLES: Tables = {
    "verify-traffic": kernel_tables.traffic_table,
    "kernel-report": kernel_tables.kernel_report_table,
    "kernel-speed": kernel_tables.kernel_speed_table,
}
STUDY_TABLES: Tables = {
    "goals": goals_table.goals_table,
    "peers-all": lambda: speed_tables.peers_lines(tuple(range(1, 9))),
    "drifted": quality_tables.drifted_table,
    "drifted-methods": quality_tables.drifted_methods_table,
    "drifted-speed": lambda: speed_tables.bench_table("drifted.json", DRIFTED_RUNS),
    "hard-depths": quality_tables.hard_depths_table,
    "donor": quality_tables.donor_table,
    "hard-speed": lambda: speed_tables.bench_table("methods.json", METHODS_RUNS),
    "growth": speed_tables.growth_table,
}
PARALLEL_OVER_SINGLE = (("parallel-2", "single-2"), ("parallel-4", "single-4"))
PARALLEL_TABLES: Tables = {
    "kinds-mails": partial(kind_tables.calls_table, "mails"),
    "kinds-mails-speed": partial(kind_tables.speed_table, "mails"),
    "kinds-code": partial(kind_tables.calls_table, "code"),
    "kinds-code-speed": partial(kind_tables.speed_table, "code"),
    "parallel-step": speed_tables.parallel_step_table,
    "parallel-losses": kind_tables.losses_table,
    "parallel-lossless": partial(speed_tables.lossless_line, "lossless_parallel.json"),
    "parallel-over": partial(kind_tables.over_lines, ("mails", "code"), PARALLEL_OVER_SINGLE),
}
PAGES: tuple[tuple[str, Tables], ...] = (
    ("README.md", README_TABLES),
    ("docs/results.md", RESULTS_TABLES),
    ("kernels/README.md", KERNEL_TABLES),
    ("docs/serving.md", {"engines": speed_tables.engines_table}),
    ("docs/scale.md", {"plan-hours": speed_tables.plan_hours_table}),
    ("docs/study.md", STUDY_TABLES),
    ("docs/parallel.md", PARALLEL_TABLES),
    ("docs/heads.md", {"head-step": speed_tables.head_step_table}),
    ("docs/stories/reproduce.md", {"reproduced": story_tables.reproduced_table}),
    (
        "docs/free.md",
        {f"free-{pair}": partial(baseline_tables.free_table, pair) for pair in ("mails", "open", "code")}
        | {"load": baseline_tables.load_table},
    ),
    (
        "docs/prompts.md",
        {"self-kinds": quality_tables.self_kinds_table, "self-alpha": quality_tables.self_alpha_table},
    ),
)


def fill(path: Path, tables: Tables) -> str:
    """The page's text with every marked block replaced."""
    text = path.read_text()
    for name, make in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(text):
            sys.exit(f"{path} has no block <!-- {name} -->")
        text = block.sub(lambda match, make=make: match[1] + make() + "\n" + match[2], text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail where a table is out of date")
    check = parser.parse_args().check
    for name, tables in PAGES:
        path = ROOT / name
        wanted = fill(path, tables)
        if check and wanted != path.read_text():
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run `python benchmarks/tables/readme_tables.py`")
        if not check:
            path.write_text(wanted)


if __name__ == "__main__":
    main()
