"""The table of planted errors follows the code, and the runner tells a caught error from a missed one.

All of them at once take some minutes: `make planted-errors`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import subprocess
import sys

import pytest
from planted_errors import ROOT, TABLE, PlantedError, read_table


@functools.cache
def names_of_tests(file: str) -> set[str]:
    """Names of the tests in a file, named from the folder of the table."""
    tree = ast.parse((TABLE.parent / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("error", read_table(), ids=lambda error: error.wire)
def test_every_planted_error_fits_the_code_and_names_a_test(error):
    compile(error.spoiled(), error.file, "exec")
    file, _, name = error.test.partition("::")
    assert name in names_of_tests(file)


def test_every_wire_is_broken_once():
    wires = [error.wire for error in read_table()]
    assert len(set(wires)) == len(wires)


def test_a_text_that_is_gone_is_named():
    with pytest.raises(ValueError, match=r"build.py holds 0 times, not once: 'no such line' \(a wire\)"):
        PlantedError("a wire", "specdistill/distill/sequences/build.py", "no such line", "", "").spoiled()


def test_the_runner_sees_an_error_and_the_lack_of_one():
    """In a process of its own, since it forks: the same test once with an error and once with a harmless change."""
    error = next(error for error in read_table() if error.wire == "--batch-size is ignored by fixed sets")
    rows = [error, dataclasses.replace(error, wire="nothing is wrong", new=error.old + "  # the same")]
    script = (
        "import sys; sys.path[:0] = ['.', '../..', '../../kernels'];"
        "import planted_errors as planted; from planted_errors import PlantedError;"
        f"print([caught for _, caught, _ in planted.check([{', '.join(map(repr, rows))}])])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT / "tests" / "support", check=True
    )
    assert done.stdout.splitlines()[-1] == "[True, False]"
