"""Runs our own commands and other benchmark scripts, and prints each as one would type it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.support.paths import ROOT


def run_command(*arguments: str) -> None:
    """Runs one `specdistill` command in this process; exits where it fails."""
    from specdistill.cli import main

    print(f"\n$ specdistill {shlex.join(arguments)}", flush=True)
    start = time.perf_counter()
    code = main(list(arguments))
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)
    if code:
        sys.exit(code)


def run_script(script: str, *arguments: str) -> None:
    """Runs one script in a process of its own, on one thread; exits where it fails.

    Args:
        script: Path below benchmarks/, such as `ops/loss_op.py`.
        arguments: Command-line arguments of the script.
    """
    path = Path("benchmarks") / script
    print(f"\n$ python {path} {shlex.join(arguments)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(ROOT / path), *arguments], env=environment)
    if done.returncode:
        sys.exit(f"{path} failed")
