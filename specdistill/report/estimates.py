"""How long a task will still take, by its first steps: one line, once, and only where it is worth knowing."""

from __future__ import annotations

import time
from collections.abc import Callable

WORTH_SAYING = 60.0
"""Seconds from which on a wait is announced."""
_WATCHED = 3.0
"""Seconds to watch before a task is judged."""


def duration(seconds: float) -> str:
    """`2 min`, `1 h 20 min`: whole minutes, rounded up."""
    minutes = max(1, -(-round(seconds) // 60))
    hours, rest = divmod(minutes, 60)
    return f"{rest} min" if not hours else f"{hours} h" if not rest else f"{hours} h {rest} min"


class WaitEstimate:
    """Watches one task.

    The first advance only starts the clock: a first step is slower than others, and the first advance of a run that
    goes on is what was done before.

    Args:
        name: Name of the task, for the line.
        total: Its units.
        unit: Name of a unit.
        now: Clock, in seconds.
    """

    def __init__(self, name: str, total: int, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name, self._total, self._unit, self._now = name, total, unit, now
        self._done, self._first, self._began = 0, 0, 0.0
        self._judged = False

    def advance(self, amount: int) -> str | None:
        """Counts units that were done.

        Returns:
            The line to show; None for most calls.
        """
        self._done += amount
        if self._judged or amount <= 0:
            return None
        if not self._first:
            self._first, self._began = self._done, self._now()
            return None
        watched = self._now() - self._began
        if watched < _WATCHED:
            return None
        self._judged = True
        left = watched / (self._done - self._first) * (self._total - self._done)
        if left < WORTH_SAYING:
            return None
        return (
            f"{self._name}: about {duration(left)} to go, by the first {self._done:,} of {self._total:,} {self._unit}"
        )
