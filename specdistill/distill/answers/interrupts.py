"""Ctrl-C while shards are written: the line that says what is there and how to go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from specdistill.progress import Progress


@contextlib.contextmanager
def reported_interrupt(output: Path, content: str, size: str, progress: Progress) -> Iterator[None]:
    """Says on Ctrl-C how many finished files there are; the caller decides the exit code.

    Args:
        output: Directory of the shards.
        content: What they hold, such as "answers".
        size: How much of it a file holds, for people: what is not in a finished file is made again.
        progress: Where the line goes.
    """
    try:
        yield
    except KeyboardInterrupt:
        files = len(list(output.rglob("*.parquet")))
        if files:
            done = f"{files} finished file{'' if files == 1 else 's'} of {content}; the same command goes on"
        else:
            done = f"no file of {content} was finished, and only finished ones are kept; the same command starts again"
        progress.say(f"interrupted; in {output}: {done} (a file holds {size})")
        raise
