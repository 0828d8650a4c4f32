"""The benchmarks: every script is in the table, results are where it says, nothing private is used."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SOURCES = sorted(BENCHMARKS.rglob("*.py"))
SCRIPTS = [path for path in SOURCES if '__name__ == "__main__"' in path.read_text()]
TABLE = (BENCHMARKS / "README.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w/]+\.py)` \|.*\| ([^|]+) \|$", TABLE, re.MULTILINE))
"""Script -> its result, in words."""


def name_of(path: Path) -> str:
    return str(path.relative_to(BENCHMARKS))


def test_the_table_lists_every_script():
    assert set(ROWS) == {name_of(script) for script in SCRIPTS} and len(ROWS) > 15


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
def test_a_script_writes_the_result_that_the_table_names(script):
    for result in re.findall(r"`([\w*]+\.json|smollm2_\*)`", ROWS[name_of(script)]):
        assert list((BENCHMARKS / "results").glob(result)), result
        parts = [script, *(BENCHMARKS / "support").glob("*.py")]
        assert any(result.split("*")[0] in part.read_text() for part in parts), f"{script} does not name {result}"


def test_every_result_belongs_to_a_script():
    named = [name for result in ROWS.values() for name in re.findall(r"`([\w*]+\.json|smollm2_\*)`", result)]
    kept = {path.name for name in named for path in (BENCHMARKS / "results").glob(name)}
    assert kept == {path.name for path in (BENCHMARKS / "results").iterdir()}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_no_script_is_imported(path):
    """An imported script would put the repository's root, and so its folder kernels/, on the path for good."""
    scripts = [script for script in SCRIPTS if "sys.path.insert" in script.read_text()]
    modules = {f"benchmarks.{name_of(script)[:-3].replace('/', '.')}" for script in scripts}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            assert not imported & modules, name_of(path)


def test_the_root_is_not_left_on_the_path(tmp_path):
    script = tmp_path / "script.py"
    line = f"sys.path.insert(0, {str(ROOT)!r})"
    script.write_text(f"import sys\n{line}\nimport benchmarks.support.paths\nassert {str(ROOT)!r} not in sys.path\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, str(script)], cwd=tmp_path, env=environment, check=True)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_private_of_others_is_used(path):
    """A script measures through the public interface: a private attribute is one of this very object."""
    for node in ast.walk(ast.parse(path.read_text())):
        private = isinstance(node, ast.Attribute) and re.match(r"_[^_]", node.attr)
        if private and ast.unparse(node.value) != "self" and ast.unparse(node) != "os._exit":
            pytest.fail(f"{name_of(path)}:{node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.ImportFrom):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")], name_of(path)
