"""Lines that `specdistill check` and `export` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.text import Text

from specdistill.report.console import plain_console


class Verdict(Protocol):
    """`serving.gates.Verdict`, as far as it is printed."""

    @property
    def engine(self) -> str:
        """Name of the engine."""
        ...

    @property
    def rule(self) -> str:
        """How it accepts draft tokens."""
        ...

    @property
    def command(self) -> str:
        """Command line that starts it."""
        ...

    @property
    def refusals(self) -> list[str]:
        """Reasons why it will not load the pair."""
        ...

    @property
    def warnings(self) -> list[str]:
        """Costs although it loads."""
        ...

    @property
    def first(self) -> list[str]:
        """Commands to run before."""
        ...

    @property
    def alternative(self) -> str | None:
        """Another command that serves the pair."""
        ...

    @property
    def loads(self) -> bool:
        """Whether it loads the pair."""
        ...


class Exported(Protocol):
    """`serving.export.Exported`, as far as it is printed."""

    @property
    def path(self) -> str:
        """Where the draft was written."""
        ...

    @property
    def changes(self) -> list[str]:
        """Differences from the draft as it was, a line each."""
        ...

    @property
    def verdict(self) -> Verdict:
        """The engine's own conditions for it."""
        ...


def verdict_lines(verdicts: Sequence[Verdict]) -> None:
    """Prints a block per engine."""
    console = plain_console()
    for verdict in verdicts:
        _verdict_lines(console, verdict)


def exported_lines(exported: Exported) -> None:
    """Prints where the draft was written, what changed, and the engine's verdict."""
    console = plain_console()
    console.print(f"wrote {exported.path}", soft_wrap=True)
    for line in exported.changes:
        console.print(f"  {line}", soft_wrap=True)
    _verdict_lines(console, exported.verdict)


def _verdict_lines(console: Console, verdict: Verdict) -> None:
    word = ("loads", "bold green") if verdict.loads else ("refuses", "bold red")
    console.print(Text.assemble((verdict.engine, "bold"), ": ", word))
    for mark, lines in (("because", verdict.refusals), ("beware", verdict.warnings)):
        for line in lines:
            console.print(f"  {mark}: {line}", soft_wrap=True)
    if verdict.loads:
        console.print(f"  accepts by: {verdict.rule}", soft_wrap=True)
        for line in verdict.first:
            console.print(f"  first: {line}", soft_wrap=True)
        console.print(f"  {verdict.command}", soft_wrap=True)
        if verdict.alternative is not None:
            console.print(f"  or: {verdict.alternative}", soft_wrap=True)
