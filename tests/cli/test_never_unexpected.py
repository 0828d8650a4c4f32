"""Whatever a user hands to a command: one line with the cause, exit code 2, nothing written, never "unexpected"."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import bad_inputs
import pytest
from bad_cases import CASES, COMMANDS, WEIGHTS

from specdistill.cli import main


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return bad_inputs.make_folder(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def folder(whole_folder, monkeypatch):
    """The folder without what a case that failed has written there."""
    monkeypatch.chdir(whole_folder)
    yield whole_folder
    shutil.rmtree("out", ignore_errors=True)
    Path("out").unlink(missing_ok=True)


def arguments(command: str, flags: dict[str, str | None]) -> list[str]:
    """Words of a command with some flags changed."""
    given = COMMANDS[command] | flags
    words = []
    for flag, value in given.items():
        if value is not None:
            words += [f"{flag}={value}"] if flag.startswith("--") else [flag]
    return [command.split()[0], *words]


def listing(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Every file with its size and time of change; None for a directory."""
    found = [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    stats = {path: path.stat() for path in found if path.is_file()}
    return {str(path): (stats[path].st_size, stats[path].st_mtime_ns) if path in stats else None for path in found}


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    CASES,
    ids=[
        f"{command}: {' '.join(f'{flag} {str(value)[:40]}' for flag, value in flags.items())}"
        for command, flags, _ in CASES
    ],
)
def test_one_line_exit_2_and_nothing_written(folder, capsys, command, flags, words):
    before = listing(folder)
    assert main(arguments(command, flags)) == 2
    captured = capsys.readouterr()
    *before_it, line = captured.err.strip().split("\n")
    assert not before_it or flags in WEIGHTS, captured.err
    assert line.startswith("specdistill: ") and not [word for word in before_it if word.startswith("specdistill")]
    assert "unexpected" not in captured.err.lower() and "Traceback" not in captured.err and captured.out == ""
    assert not [word for word in words if word not in line], line
    assert listing(folder) == before


@pytest.mark.parametrize("words", [["nosuch"], ["trian-draft"], [""], ["--nosuch"]], ids=str)
def test_an_unknown_command_names_those_that_exist(capsys, words):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert "Unknown command" in line and "train-draft" in line


def test_a_flag_that_is_given_twice_is_refused(capsys):
    assert main(["check", "--target", "a", "--target", "b", "--draft", "c"]) == 2
    (line,) = capsys.readouterr().err.strip().split("\n")
    assert "--target specified multiple times" in line


def test_imports_of_transformers_add_no_line_of_their_own(folder):
    """bitsandbytes says that it lacks an optional kernel when transformers' trainer imports it."""
    command = [sys.executable, "-m", "specdistill", *arguments("train-draft", {"--prompts": "none.jsonl"})]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr == "specdistill: prompts file none.jsonl does not exist\n"
