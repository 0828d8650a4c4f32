"""Lines that `specdistill check`, `export` and `carry-head` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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


class CarriedHead(Protocol):
    """`serving.carry_head.CarriedHead`, as far as it is printed."""

    @property
    def path(self) -> str:
        """Directory that was written."""
        ...

    @property
    def tensors(self) -> dict[str, str]:
        """Tensor of the head -> its file."""
        ...

    @property
    def parameters(self) -> int:
        """Number of the head's parameters."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of config.json that were taken from the base."""
        ...


def carried_lines(carried: CarriedHead) -> None:
    """Prints where the target with its head was written, and how to measure it."""
    console = plain_console()
    console.print(f"wrote {carried.path}", soft_wrap=True)
    files = ", ".join(sorted(set(carried.tensors.values())))
    size = f"{len(carried.tensors)} tensors, {carried.parameters / 1e6:.1f}M parameters"
    console.print(f"  the base's head: {size}, in {files}", soft_wrap=True)
    for name, value in carried.settings.items():
        console.print(f"  config.json: {name} {value}", soft_wrap=True)
    console.print("  it was trained beside the base's weights: measure what the fine-tuning cost it")


class OwnHeadVerdict(Protocol):
    """`serving.own_head.OwnHeadVerdict`, as far as it is printed."""

    @property
    def state(self) -> str:
        """here, lost, none or unknown."""
        ...

    @property
    def why(self) -> str:
        """The reason."""
        ...

    @property
    def tensors(self) -> int:
        """Number of its tensors."""
        ...

    @property
    def parameters(self) -> int:
        """Number of its parameters."""
        ...

    @property
    def remedy(self) -> str | None:
        """Command that brings it back."""
        ...

    @property
    def commands(self) -> dict[str, str]:
        """Engine -> command line that drafts with it."""
        ...


def own_head_lines(head: OwnHeadVerdict) -> None:
    """Prints whether the target holds a head of its own, and how to use it or to bring it back."""
    console = plain_console()
    style = {"here": "bold green", "lost": "bold red"}.get(head.state, "bold")
    size = f", {head.tensors} tensors" if head.state == "here" else ""
    size += f", {head.parameters / 1e6:.1f}M parameters" if size and head.parameters else ""
    console.print(
        Text.assemble(("own head", "bold"), ": ", (head.state, style), f"{size} ({head.why})"), soft_wrap=True
    )
    if head.remedy is not None:
        console.print(f"  bring it back: {head.remedy}", soft_wrap=True)
    for engine, command in head.commands.items():
        console.print(f"  {engine}: {command}", soft_wrap=True)


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
