"""The console that results are printed on. User text is printed as it is: no markup, no emoji codes."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """Makes a console that takes every string literally, so that `[/i]` in a path or a prompt's id is no command.

    Args:
        stderr: Whether it writes to stderr instead of stdout.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
