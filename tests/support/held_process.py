"""A command in a process of its own, held at a place of the program until a signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

# A shell starts background jobs with SIGINT ignored, and children inherit that: the test must not depend on it. The
# file `held` appears when the process comes to a place of the program; it then waits there for the signal.
HOLD = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from specdistill.cli import main
import importlib
place, calls, held = {place!r}, {calls}, Path({held!r})
module, _, name = place.rpartition(".")
owner = importlib.import_module(module) if module else None
original, count = getattr(owner, name), iter(range(10**6))
def holding(*arguments, **named):
    if next(count) >= calls:
        held.touch()
        time.sleep(120)
    return original(*arguments, **named)
setattr(owner, name, holding)
sys.exit(main())
"""


def stopped(tmp_path, command, place, calls, sent=signal.SIGINT):
    """Runs a command until it comes to a function for the n-th time, sends it a signal; (exit code, output, errors)."""
    held = tmp_path / "held"
    code = HOLD.format(place=place, calls=calls, held=str(held))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"},
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not held.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(sent)
    output, errors = process.communicate(timeout=120)
    held.unlink()
    assert "Traceback" not in errors and "unexpected" not in errors
    return process.returncode, output, errors


def bench_command(folder, tmp_path, *more):
    pair = ["--target", str(folder / "target"), "--draft", str(folder / "draft")]
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    size = ["--max-new-tokens", "8", "--num-prompts", "10", "--max-draft-tokens", "2"]
    return ["bench", *pair, *files, *size, "--prompts", str(folder / "prompts.jsonl"), *more]
