"""The parts of a bench after scoring, in turn: what fails or is interrupted is missing, and the rest is kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from specdistill.decoding.costs import Costs
from specdistill.evaluation.interruption import Interruption, unfinished
from specdistill.evaluation.measured import Timed
from specdistill.evaluation.report import Report

T = TypeVar("T")
Keep = Callable[[Report], None]
"""Called with the report so far, after each part, and now and then in the middle of the timed run."""
_SECONDS_BETWEEN = 10.0
"""Least time between two calls in the middle of a part."""
_MOST_TIME = 0.02
"""Largest share of the time that such calls take."""


class Pace:
    """Says when the report is due in the middle of a part: seldom enough to take little of its time."""

    def __init__(self) -> None:
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def kept(self, seconds: float) -> None:
        """Notes that the report was written just now, in so many seconds."""
        self._next = time.monotonic() + max(_SECONDS_BETWEEN, seconds / _MOST_TIME)


class Parts:
    """Runs the parts and puts the report together.

    Args:
        build: Builds the report of what all benches have, from costs and timed runs as far as there are any, and the
            reason why decoding was not timed where it was not.
        stop: Ctrl-C and failures.
        asked: Prompts of the whole run.
        keep: Called with the report after scoring and after each part; None keeps nothing.
    """

    def __init__(
        self,
        build: Callable[[Costs | None, Timed | None, str], Report],
        stop: Interruption,
        asked: int,
        keep: Keep | None,
    ) -> None:
        self._build, self._stop, self._asked, self._keep = build, stop, asked, keep
        self._pace = Pace()
        self.costs: Costs | None = None
        self.timed: Timed | None = None
        self.sections: dict[str, Any] = {}
        """Section of the report -> its value, None where it is missing."""

    def needed(self, name: str, work: Callable[[], T]) -> T | None:
        """Runs a part that later ones need: they are left out where it fails.

        Args:
            name: Name of the part.
            work: Measures it.

        Returns:
            The result of `work`; None where it failed or the bench ended before.
        """
        result = None
        if not self._stop:
            self._stop.where = name
            with self._stop.caught():
                result = work()
        return result

    def section(self, name: str, work: Callable[[], T]) -> T | None:
        """Runs a part that the report can do without; its result becomes the section of that name.

        Args:
            name: Name of the section, a field of `Report`.
            work: Measures it. None leaves the section out.
        """
        result = self.optional(name, work)
        self.sections[name] = result
        if result is not None:
            self.keep(name)
        return result

    def optional(self, name: str, work: Callable[[], T]) -> T | None:
        """Runs a part that the report can do without; None where it failed or the bench ended before."""
        result = None
        if not self._stop:
            self._stop.where = name
            with self._stop.optional(name):
                result = work()
        return result

    def keep(self, name: str, *, is_done: bool = True) -> None:
        """Hands on the report so far, marked as unfinished, so that even a kill leaves what was measured.

        Args:
            name: The part that is done.
            is_done: False in the middle of it.
        """
        if self._keep is None or self._stop:
            return
        begin = time.monotonic()
        try:
            report = self.report()
            self._keep(unfinished(report, name, *self._counts(report), is_done=is_done))
        except KeyboardInterrupt as error:
            if not is_done:
                # The part takes it.
                raise
            self._stop(error)
        self._pace.kept(time.monotonic() - begin)

    @property
    def is_due(self) -> bool:
        """Whether it is time for `keep` in the middle of a part."""
        return self._keep is not None and self._pace.is_due

    def report(self) -> Report:
        """The report so far."""
        return replace(self._build(self.costs, self.timed, self._stop.why_not_timed), **self.sections)

    def finished(self) -> Report:
        """The whole report.

        Raises:
            BenchInterruptedError: After Ctrl-C, with the report.
            BenchFailedError: A part failed, with the report.
        """
        report = self.report()
        self._stop.raise_with(report, *self._counts(report))
        return report

    def _counts(self, report: Report) -> tuple[int, int]:
        """Prompts done and asked: those that were timed, or else those that were scored."""
        if self.timed is not None and self.timed.prompts:
            return self.timed.prompts, self.timed.asked
        return report.setup.prompts, self._asked
