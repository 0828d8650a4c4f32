"""How long work reports on itself: the library calls this interface, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def advance(self, amount: int = 1) -> None: ...

    def note(self, text: str) -> None:
        """Shows a short remark beside the bar, e.g. the current acceptance."""
        ...


class Progress(Protocol):
    """Where bars and remarks go."""

    def say(self, text: str) -> None:
        """One line that stays."""
        ...

    def task(self, name: str, total: int, unit: str) -> AbstractContextManager[Task]:
        """Yields a `Task` of `total` units."""
        ...


class Quiet:
    """Reports nothing; the default of the Python functions."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def task(self, name: str, total: int, unit: str) -> Iterator[Task]:
        yield self

    def advance(self, amount: int = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass
