"""Time inside a model's passes, measured without waiting for the device after each of them."""

from __future__ import annotations

import time

import torch


class Clock:
    """Adds up the time of `with` blocks, which may not overlap.

    On a GPU each block leaves two CUDA events in the stream. The host waits only where `seconds` is read, once for all
    blocks. Elsewhere it is the time of the host.

    Args:
        device: Where the blocks compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = self._start = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """Seconds inside the blocks so far."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events.clear()
        return self._seconds

    def __enter__(self) -> None:
        if self._on_gpu:
            pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            pair[0].record()
            self._events.append(pair)
        else:
            self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._on_gpu:
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._start


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all that it was asked for: around single passes that are timed by the host."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
