"""Every kernel compiles for GPUs that are not here, within the committed limits: no spills, 16-byte loads, each entry
loaded once a pass."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def report():
    # A process of its own: kernels that were imported for the interpreter can't be compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "benchmarks/kernel_report.py", "--check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_compiles_for_every_target_without_spills(report):
    assert {row["target"] for row in report} == TARGETS
    kernels = {row["kernel"] for row in report}
    assert len(report) == len(kernels) * len(TARGETS)
    assert all(row["spills"] == 0 for row in report)


def test_every_fused_file_is_in_the_report(report):
    folders = {path.parent.name for path in (ROOT / "kernels").rglob("fused.py")}
    assert folders == {row["kernel"].split()[0] for row in report}


def test_an_entry_is_loaded_once_a_pass(report):
    traffic = {(row["kernel"], row["target"]): row["bytes_per_entry"] for row in report}
    assert traffic["topk_membership bf16", "sm_90"] == 2 and traffic["expected_acceptance bf16", "sm_90"] == 8
