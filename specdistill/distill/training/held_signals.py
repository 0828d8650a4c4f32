"""Holds stop signals back while a run changes what a checkpoint must find whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@contextlib.contextmanager
def held_signals() -> Iterator[None]:
    """Delivers Ctrl-C, SIGTERM and SIGHUP to their handlers only when the block has ended.

    Signals without a handler in Python keep their effect. Other threads get no signals, and may not set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    before = {}
    try:
        for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
            if callable(signal.getsignal(number)):
                before[number] = signal.signal(number, lambda number, frame: came.append((number, frame)))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in came[:1]:
        before[number](number, frame)
