"""Fills the tables of the READMEs and the docs from benchmarks/results, so that no number is typed by hand.

python benchmarks/readme_tables.py           writes them
python benchmarks/readme_tables.py --check   fails if one is out of date (a test runs this)
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

import goals_table
import kernel_tables
import quality_tables
import speed_tables

ROOT = Path(__file__).parents[1]

TABLES = {
    "peers": speed_tables.peers_table,
    "loss-op": speed_tables.loss_op_table,
    "engines": speed_tables.engines_table,
    "soft-labels": quality_tables.soft_labels_table,
    "methods": quality_tables.methods_table,
    "training": speed_tables.training_table,
    "alpha": quality_tables.alpha_table,
    "speed": speed_tables.speed_table,
    "layers": quality_tables.layers_table,
    "lossless": speed_tables.lossless_line,
    "decoder": speed_tables.decoder_table,
}
KERNEL_TABLES = {
    "verify-traffic": kernel_tables.traffic_table,
    "kernel-report": kernel_tables.kernel_report_table,
    "kernel-speed": kernel_tables.kernel_speed_table,
}
STUDY_TABLES = {
    "goals": goals_table.goals_table,
    "peers-all": lambda: speed_tables.peers_lines(tuple(range(1, 9))),
    "drifted": quality_tables.drifted_table,
    "drifted-methods": quality_tables.drifted_methods_table,
    "drifted-speed": lambda: speed_tables.bench_table("drifted.json"),
    "hard-depths": quality_tables.hard_depths_table,
    "hard-speed": lambda: speed_tables.bench_table("methods.json"),
    "growth": speed_tables.growth_table,
}
PLACES: tuple[tuple[str, dict[str, Callable[[], str]]], ...] = (
    ("README.md", TABLES),
    ("kernels/README.md", KERNEL_TABLES),
    ("docs/serving.md", {"engines": speed_tables.engines_table}),
    ("docs/scale.md", {"plan-hours": speed_tables.plan_hours_table}),
    ("docs/study.md", STUDY_TABLES),
)


def filled(path: Path, tables: dict[str, Callable[[], str]]) -> str:
    """The file's text with every marked block replaced."""
    text = path.read_text()
    for name, make in tables.items():
        block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not block.search(text):
            sys.exit(f"{path} has no block <!-- {name} -->")
        text = block.sub(lambda match, make=make: match[1] + make() + "\n" + match[2], text)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name, tables in PLACES:
        path = ROOT / name
        wanted = filled(path, tables)
        if check and wanted != path.read_text():
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run `python benchmarks/readme_tables.py`")
        if not check:
            path.write_text(wanted)


if __name__ == "__main__":
    main()
