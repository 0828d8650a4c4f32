"""SIGTERM and a closed terminal end a command as Ctrl-C does: with its line, and with what was done until then."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_UNTOUCHED = (signal.SIG_DFL, signal.default_int_handler)


class Received:
    """The last stop signal that came; none at first."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    @property
    def line(self) -> str:
        """The line that the command line prints."""
        by = "" if self.number in (None, signal.SIGINT) else f" by {signal.Signals(self.number).name}"
        return f"specdistill: interrupted{by}"

    @property
    def exit_code(self) -> int:
        """128 + the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.number or signal.SIGINT)


@contextlib.contextmanager
def stop_signals() -> Iterator[Received]:
    """Lets stop signals raise KeyboardInterrupt inside the block, and remembers the last one.

    A signal that someone ignores (nohup, say) or handles already is left alone. So is SIGTERM in one of several ranks:
    a rank that waits for the others in a collective would not see it, and torchrun would wait for that rank.
    """
    received = Received()

    def stop(number: int, frame: object) -> None:
        received.number = number
        raise KeyboardInterrupt

    before = {}
    names = _NAMES if int(os.environ.get("WORLD_SIZE") or 1) == 1 else _NAMES[:1]
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        # Only the main thread may set handlers, and only it gets signals.
        with contextlib.suppress(ValueError):
            if signal.getsignal(number) in _UNTOUCHED:
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
