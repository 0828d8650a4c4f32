"""Contestants in processes of their own that take turns: seconds and memory of each turn, and no noise for one alone.

A contestant's process calls `begin` and `end` of its `Turns` around each turn; the script that compares them starts a
`Contestant` each and calls `step`. Memory is the resident set, whose high-water mark is forgotten before each turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


class Turns:
    """The contestant's side: waits for a line, runs a turn, reports seconds, tokens and MiB."""

    def __init__(self) -> None:
        self.tokens = 0

    def begin(self) -> None:
        print("ready", flush=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        # Forgets the high-water mark: loading the models must not count.
        Path("/proc/self/clear_refs").write_text("5")
        self.base = resident("VmRSS")
        self.tokens, self.start = 0, time.perf_counter()

    def end(self) -> None:
        seconds = time.perf_counter() - self.start
        peak = resident("VmHWM")
        report = {"seconds": seconds, "tokens": self.tokens, "peak": peak, "above": peak - self.base}
        print(json.dumps(report), flush=True)


class Contestant:
    """The script's side of a contestant.

    Args:
        script: Python file that it runs.
        arguments: Of that file.
        environment: Added to ours; one thread is always asked for.
    """

    def __init__(self, script: str, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
        self._until("ready")

    def step(self) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        report = json.loads(self._until("{"))
        self._until("ready")
        return report

    def _until(self, start: str) -> str:
        assert self.process.stdout is not None and self.process.stderr is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line
        sys.exit(f"a contestant ended:\n{self.process.stderr.read()[-2000:]}")

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.communicate()
