"""Ctrl-C while shards are written: the line that says what is there and how to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from specdistill.progress import Progress


@contextlib.contextmanager
def reported_interrupt(output: Path, content: str, progress: Progress) -> Iterator[None]:
    """Says on Ctrl-C how many finished files there are; the caller decides the exit code.

    Args:
        output: Directory of the shards.
        content: What they hold, such as "answers".
        progress: Where the line goes.
    """
    try:
        yield
    except KeyboardInterrupt:
        files = len(list(output.rglob("*.parquet")))
        kept = f"{files} finished file{'' if files == 1 else 's'} of {content}" if files else "nothing was finished yet"
        progress.say(f"interrupted; in {output}: {kept}; the same command goes on")
        raise
