"""How long tasks report progress: the library calls this interface, and the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One progress bar."""

    def advance(self, amount: int = 1) -> None:
        """Moves the bar by `amount` units."""
        ...

    def note(self, text: str) -> None:
        """Shows a short remark next to the bar, such as the current acceptance."""
        ...


class Progress(Protocol):
    """Shows bars and remarks."""

    def say(self, text: str) -> None:
        """Prints one line that stays on the screen."""
        ...

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Opens a bar of `total` units and yields its `Task`."""
        ...


class Quiet:
    """Shows nothing. This is the default of the Python functions."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        yield self

    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass
