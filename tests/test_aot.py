"""Every kernel compiles for GPUs that are not here, within the committed limits: no spills, 16-byte loads, each entry
loaded once a pass."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = {"sm_80", "sm_90", "sm_100", "gfx942"}


@pytest.fixture(scope="module")
def report():
    # A process of its own: kernels that were imported for the interpreter can't be compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "benchmarks/ops/kernel_report.py", "--check"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_kernel_compiles_for_every_target_without_spills(report):
    counts = Counter(row["target"] for row in report)
    assert set(counts) == TARGETS and len(set(counts.values())) == 1
    assert all(row["spills"] == 0 for row in report)


def test_every_kernel_is_in_the_report(report):
    written = {
        name
        for path in (ROOT / "kernels").rglob("fused*.py")
        for name in re.findall(r"^def (\w+)_kernel\(", path.read_text(), re.MULTILINE)
    }
    assert written == {row["kernel"].split(" / ")[1] for row in report}


def test_an_entry_is_loaded_once_a_pass(report):
    traffic = {(row["kernel"], row["target"]): row["bytes_per_entry"] for row in report}
    for target in TARGETS:
        assert traffic["topk_membership bf16 / topk_membership_fwd", target] == 2
        assert traffic["expected_acceptance bf16 / expected_acceptance_fwd", target] == 8
        # All of verification without draft probabilities: the other kernel reads a few numbers per row.
        assert traffic["verify greedy bf16 / sample_pick", target] <= 2.1
        assert traffic["verify one-hot bf16 / sample_pick", target] <= 2.1
