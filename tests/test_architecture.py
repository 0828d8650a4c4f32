"""The house plan as a test: who may import whom, how long a file may be, what no folder may be called."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEAVES = {"errors", "files", "progress", "servers", "settings"}
# A package may import those to its right in DESIGN's chain, never those to its left.
MAY_IMPORT = {
    "cli": {"report", "serving", "distill", "evaluation", "decoding", "models", "data"},
    "report": {"evaluation", "decoding", "models", "data"},
    "serving": {"evaluation", "decoding", "models", "data"},
    "distill": {"evaluation", "decoding", "models", "data"},
    "evaluation": {"decoding", "models", "data"},
    "decoding": {"models", "data"},
    "models": set(),
    "data": set(),
}
KERNEL_USERS = {"distill", "evaluation", "decoding", "models", "data"}
SOURCES = sorted([*ROOT.glob("specdistill/**/*.py"), *ROOT.glob("kernels/**/*.py")])


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path):
    relative = path.relative_to(ROOT)
    names = imports(path)
    if relative.parts[0] == "kernels":
        assert not [name for name in names if name.split(".")[0] in ("specdistill", "transformers")]
        return
    if len(relative.parts) == 2:
        return
    package = relative.parts[1]
    for name in names:
        parts = name.split(".")
        if parts[0] == "specdistill_kernels":
            assert package in KERNEL_USERS, f"{package} -> {name}"
        if parts[0] == "specdistill" and len(parts) > 1:
            known = parts[1] in MAY_IMPORT or parts[1] in LEAVES
            if known and parts[1] != package and parts[1] not in LEAVES:
                assert parts[1] in MAY_IMPORT[package], f"{package} -> {name}"
        if parts[0] in ("vllm", "xllamacpp", "sglang"):
            assert relative.parts[1:3] == ("serving", "engines"), f"{relative} imports {name}"


def test_every_package_is_in_the_plan():
    packages = {path.name for path in (ROOT / "specdistill").iterdir() if (path / "__init__.py").exists()}
    assert packages == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_one_idea_long_and_say_what_it_is(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    assert ast.get_docstring(ast.parse(text)), "a module docstring says what the file is for"


def test_public_functions_are_documented():
    missing = []
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                missing.append(f"{path.relative_to(ROOT)}:{node.name}")
    assert not missing


def test_nothing_that_can_land_on_the_path_is_called_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists(), "it would shadow the package that transformers imports"
    taken = [path for folder in ("tests", "benchmarks", "specdistill") for path in (ROOT / folder).rglob("kernels*")]
    assert not [path for path in taken if path.stem == "kernels"]
    subprocess.run([sys.executable, "-c", "import transformers.modeling_utils"], cwd=ROOT, check=True)


def test_only_reports_and_the_command_line_print():
    allowed = {"report", "cli"}
    for path in SOURCES:
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert not calls or path.relative_to(ROOT).parts[1] in allowed, path
