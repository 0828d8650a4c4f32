"""What `specdistill check` and `export` print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from specdistill.files import atomic
from specdistill.report.json_file import json_report


def verdict_lines(verdicts: Sequence[dict[str, Any]], json: str | None) -> None:
    """Prints a block per engine.

    Args:
        verdicts: From `serving.gates.check`, as JSON.
        json: File to write them to as well, or None.
    """
    console = Console()
    for verdict in verdicts:
        _verdict_lines(console, verdict)
    if json is not None:
        atomic.write_text(Path(json), json_report({"engines": list(verdicts)}))


def exported_lines(exported: Any) -> None:
    """Prints what `serving.export.export` wrote, what it changed, and the engine's verdict."""
    console = Console()
    console.print(f"wrote {escape(exported.path)}", soft_wrap=True, highlight=False)
    for line in exported.changes:
        console.print(f"  {escape(line)}", soft_wrap=True, highlight=False)
    _verdict_lines(console, exported.verdict.to_json())


def _verdict_lines(console: Console, verdict: dict[str, Any]) -> None:
    word = "[bold green]loads[/]" if verdict["loads"] else "[bold red]refuses[/]"
    console.print(f"[bold]{escape(verdict['engine'])}[/]: {word}", highlight=False)
    for kind in ("refusals", "warnings"):
        for line in verdict[kind]:
            mark = "because" if kind == "refusals" else "beware"
            console.print(f"  {mark}: {escape(line)}", soft_wrap=True, highlight=False)
    if verdict["loads"]:
        console.print(f"  accepts by: {escape(verdict['rule'])}", soft_wrap=True, highlight=False)
        console.print(f"  {escape(verdict['command'])}", soft_wrap=True, highlight=False)
