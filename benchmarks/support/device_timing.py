"""Time and memory of calls on a device: contestants take turns; medians by Triton's own timers on a GPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Contestants = dict[str, Callable[[], Any]]
OURS = "specdistill"


@dataclass(frozen=True)
class Timing:
    """How contestants are timed."""

    device: str
    """A CPU only walks through: its times say nothing of a GPU's."""
    rounds: int = 5
    """Turns of each contestant; the median counts."""
    milliseconds: int = 40
    """Time that each turn repeats the call for."""

    def compared(self, contestants: Contestants, graph: bool = True) -> dict[str, Any]:
        """Times and memory of all contestants, as rows of result files hold them.

        Args:
            contestants: Name -> call. Ours is called `specdistill`.
            graph: Whether to time replays of a captured graph.

        Returns:
            The row. Peers that fail, for want of memory say, are listed there as failed; ours must not fail.
        """
        memory: dict[str, float] = {}
        failed: dict[str, str] = {}
        for name, call in contestants.items():
            try:
                memory[name] = round(extra_mebibytes(call, self.device), 2)
            except Exception as error:
                if name == OURS:
                    raise
                failed[name] = f"{type(error).__name__}: {error}"[:300]
        times = self._medians({name: contestants[name] for name in memory}, graph)
        row = {
            "milliseconds": {name: round(value, 5) for name, value in times.items()},
            "times_ours": {name: round(value / times[OURS], 2) for name, value in times.items() if name != OURS},
            "extra_mebibytes": memory,
        }
        return row | ({"failed": failed} if failed else {})

    def _medians(self, contestants: Contestants, graph: bool) -> dict[str, float]:
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(self.rounds):
            for name, call in contestants.items():
                times[name].append(self._once(call, graph))
        return {name: statistics.median(values) for name, values in times.items()}

    def _once(self, call: Callable[[], Any], graph: bool) -> float:
        if self.device != "cuda":
            start = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - start)
        import triton

        timed: Any = triton.testing.do_bench_cudagraph if graph else triton.testing.do_bench
        # Graphs want a stream of their own; both return the median.
        with torch.cuda.stream(torch.cuda.Stream()):
            return timed(call, rep=self.milliseconds, return_mode="median")


def extra_mebibytes(call: Callable[[], Any], device: str = "cuda") -> float:
    """Memory that a call needs on the GPU above the memory that was in use before; 0 on a CPU."""
    if device != "cuda":
        call()
        return 0.0
    torch.cuda.empty_cache()
    with PeakMemory(device) as memory:
        call()
    return memory.extra_mib


def copied_terabytes_per_second() -> float:
    """The card's own ceiling: a large copy, bytes read and written."""
    import triton

    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    milliseconds: Any = triton.testing.do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() / milliseconds / 1e9


class PeakMemory:
    """Measures a block's largest GPU memory; all numbers are 0 on a CPU."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"
        self.held_mib = self.peak_mib = 0.0
        """MiB held before the block, and at most inside it."""

    @property
    def extra_mib(self) -> float:
        """Part of the peak that was not held before."""
        return self.peak_mib - self.held_mib

    def __enter__(self) -> PeakMemory:
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held_mib = torch.cuda.memory_allocated() / 2**20
        return self

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            self.peak_mib = torch.cuda.max_memory_allocated() / 2**20

    def to_json(self) -> dict[str, float]:
        """The numbers as rows hold them."""
        return {"held_mib": round(self.held_mib), "peak_mib": round(self.peak_mib), "extra_mib": round(self.extra_mib)}
