"""Contestants in processes of their own take turns, so that noise on the machine hits all of them alike.

A contestant's process calls `begin` and `end` of its `Interleaved` around each turn. The script that compares them
starts one `Contestant` each and calls `turn`. Memory is the resident set, whose high-water mark is reset before a turn.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The items in an order that begins with another one each round, so that no contestant always goes first."""
    first = number % len(items)
    return [*items[first:], *items[:first]]


def resident_mib(field: str) -> int:
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024


@dataclass(frozen=True)
class Turn:
    """Measurements of one turn."""

    seconds: float
    tokens: int
    peak_mib: int
    """Highest resident set during the turn."""
    above_mib: int
    """Part of the peak that was not held before the turn."""


class Interleaved:
    """The contestant's side: waits for its turn, runs it, reports it.

    Args:
        clock: Gives seconds. `time.process_time` counts those that this process computes, whatever others do.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.tokens = 0
        """Tokens of the current turn, set by the contestant."""

    def begin(self) -> None:
        """Says that it is ready and waits until it may go."""
        print("ready", flush=True)
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        # Resets the high-water mark: loading the models must not count.
        Path("/proc/self/clear_refs").write_text("5")
        self._held = resident_mib("VmRSS")
        self.tokens, self._start = 0, self._clock()

    def end(self) -> None:
        """Reports the turn."""
        seconds = self._clock() - self._start
        peak = resident_mib("VmHWM")
        print(json.dumps(asdict(Turn(seconds, self.tokens, peak, peak - self._held))), flush=True)


class Contestant:
    """The comparing script's side: one process that runs a turn when it is asked to.

    Args:
        script: Python file that the process runs.
        arguments: Command-line arguments of that file.
        environment: Added to this process's own; one thread is always asked for.
    """

    def __init__(self, script: str, *arguments: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )
        self._read_until("ready")

    def turn(self) -> Turn:
        """Runs one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        turn = Turn(**json.loads(self._read_until("{")))
        self._read_until("ready")
        return turn

    def stop(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _read_until(self, start: str) -> str:
        assert self._process.stdout is not None and self._process.stderr is not None
        for line in self._process.stdout:
            if line.startswith(start):
                return line
        sys.exit(f"a contestant ended:\n{self._process.stderr.read()[-2000:]}")


def all_turns(script: str, names: Sequence[str], rounds: int, *flags: str) -> dict[str, list[Turn]]:
    """Contestant -> its turns, after one that does not count.

    Args:
        script: Python file whose `--worker NAME` is a contestant.
        names: Contestants.
        rounds: Turns of each.
        flags: Further command-line arguments of every contestant.
    """
    workers = {name: Contestant(script, "--worker", name, *flags) for name in names}
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(-1, rounds):
        for name in rotated(names, number):
            turn = workers[name].turn()
            # The first one warms up.
            turns[name] += [turn] if number >= 0 else []
    for worker in workers.values():
        worker.stop()
    return turns
