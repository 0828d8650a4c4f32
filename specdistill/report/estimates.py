"""How long a task will still take: a line by its first steps where it is worth knowing, and one where that changes."""

from __future__ import annotations

import time
from collections.abc import Callable

WORTH_SAYING = 60.0
"""Seconds from which on a wait is announced."""
_WATCHED, _SHARE, _LONG_WATCHED = 10.0, 0.02, 45.0
"""A task is judged after so many seconds and so large a share of it, or after the longer time."""
_AGAIN, _FAR_OFF = 30.0, 1.5
"""A new line comes so many seconds after the last one at the earliest, where the wait is so much longer or shorter."""


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
        self._done, self._first, self._began, self._time = 0, 0, 0.0, 0.0
        self._judged: tuple[float, float] | None = None
        """When the task was last judged, and the seconds that it would take from then on."""

    def advance(self, amount: int) -> str | None:
        """Counts units that were done.

        Returns:
            The line to show; None for most calls.
        """
        self._done += amount
        if amount <= 0:
            return None
        self._time = self._now()
        if not self._first:
            self._first, self._began = self._done, self._time
            return None
        if self._judged is None:
            return self._first_line() if self._is_enough else None
        then, seconds = self._judged
        expected, left = max(1.0, then + seconds - self._time), self._left
        far_off = max(left, expected) > _FAR_OFF * min(left, expected)
        if self._time - then < _AGAIN or not far_off or max(left, expected) < WORTH_SAYING:
            return None
        self._judged = self._time, left
        return f"{self._name}: now about {duration(left)} to go, by {self._done:,} of {self._total:,} {self._unit}"

    @property
    def remaining(self) -> str:
        """`about 4 min to go`, by what is known now; empty where that is not enough, or not worth saying."""
        known = self._judged is not None and self._left >= WORTH_SAYING
        return f"about {duration(self._left)} to go" if known else ""

    @property
    def _left(self) -> float:
        """Seconds to go at the speed so far."""
        return (self._time - self._began) / (self._done - self._first) * (self._total - self._done)

    @property
    def _is_enough(self) -> bool:
        """Whether what was watched tells the speed: some seconds and a share of the work, or many seconds."""
        watched, units = self._time - self._began, self._done - self._first
        return watched >= _WATCHED and (units >= _SHARE * self._total or watched >= _LONG_WATCHED)

    def _first_line(self) -> str | None:
        self._judged = self._time, self._left
        if self._left < WORTH_SAYING:
            return None
        return (
            f"{self._name}: about {duration(self._left)} to go, by the first {self._done:,} of {self._total:,} "
            f"{self._unit}"
        )
