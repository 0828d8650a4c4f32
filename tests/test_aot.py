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


def compile_in_a_process(*arguments: str) -> str:
    """Runs Python where kernels compile: once imported for the interpreter they can't. Returns its stdout."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report():
    return json.loads(compile_in_a_process("benchmarks/ops/kernel_report.py", "--check").splitlines()[-1])


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


UNKNOWN_KIND = """
import sys
from dataclasses import replace

import torch
from benchmarks.ops.kernel_report import TARGETS, compile_launch
from benchmarks.ops.kernel_launches import launches_of
from triton.compiler.errors import CompilationError

(known,) = launches_of("fused_divergence tvd", torch.bfloat16, aligned=True)
for need_grad in (False, True):
    unknown = replace(known, arguments=known.arguments | {"KIND": "kl", "NEED_GRAD": need_grad})
    for target in TARGETS:
        assert compile_launch(known, target).spills == 0
        try:
            compile_launch(unknown, target)
        except CompilationError as error:
            assert "divergence_rows_kernel has no value for this KIND" in str(error), error
        else:
            sys.exit(f"an unknown kind compiled for {target}")
"""


def test_an_unknown_divergence_does_not_compile():
    compile_in_a_process("-c", UNKNOWN_KIND)
