"""The documentation's page of the bench report is made from the dataclasses, and says all of their keys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bench_report import example_report

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/report.md"


def test_the_page_is_what_the_dataclasses_say():
    """`python docs/report_page.py` writes it again; a field without a docstring fails there."""
    done = subprocess.run([sys.executable, "docs/report_page.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_key_of_a_full_report_is_on_the_page():
    def keys(value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield key
                yield from keys(inner)

    text = PAGE.read_text()
    maps = {"greedy", "sampled", "argmax_draft", "writing", "coding", "1", "2", "3", "mean", "ci95"}
    missing = [key for key in keys(example_report().to_json()) if key not in maps and f"| `{key}` |" not in text]
    assert not missing


def test_the_flag_names_the_page():
    assert PAGE.read_text().startswith("# The report\n")
    assert "the page 'The report' of the documentation" in (ROOT / "specdistill/evaluation/config.py").read_text()
