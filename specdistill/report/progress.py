"""Progress bars, estimates and remarks in the terminal, on stderr so that stdout stays a result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.text import Text

from specdistill.progress import Task
from specdistill.report.console import plain_console
from specdistill.report.estimates import WaitEstimate


class _Speed(ProgressColumn):
    """Units per second, once there is something to divide by."""

    def render(self, task: RichTask) -> Text:
        return Text("" if not task.speed else f"{task.speed:.3g}/s")


class _Bar:
    def __init__(self, progress: Progress, task_id, estimate: WaitEstimate) -> None:
        self._progress, self._id, self._estimate = progress, task_id, estimate

    def advance(self, amount: int = 1) -> None:
        self._progress.advance(self._id, amount)
        line = self._estimate.advance(amount)
        if line is not None:
            self._progress.console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        self._progress.update(self._id, note=text)


class _Lines:
    """For log files: a line at every fifth of the way, with the time to go, instead of a bar that redraws itself."""

    def __init__(self, console: Console, name: str, total: int, unit: str) -> None:
        self._console, self._name, self._total, self._unit = console, name, max(1, total), unit
        self._done, self._shown, self._note = 0, 0, ""
        self._estimate = WaitEstimate(name, total, unit)

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        line = self._estimate.advance(amount)
        fifths = 5 * self._done // self._total
        if fifths > self._shown:
            self._shown = fifths
            parts = f"{self._name}: {self._done}/{self._total} {self._unit}", self._note, self._estimate.remaining
            line = "  ".join(part for part in parts if part)
        if line is not None:
            self._console.print(line, soft_wrap=True)

    def note(self, text: str) -> None:
        self._note = text


class TerminalProgress:
    """Draws `specdistill.progress.Progress` with rich; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self.console = plain_console(stderr=True)

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        if not self.console.is_terminal:
            yield _Lines(self.console, name, total, unit)
            return
        columns = [
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            _Speed(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        ]
        with Progress(*columns, console=self.console, refresh_per_second=4) as progress:
            yield _Bar(progress, progress.add_task(name, total=total, note=""), WaitEstimate(name, total, unit))
