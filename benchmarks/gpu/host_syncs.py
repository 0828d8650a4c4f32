"""Counts how often the host waits for the GPU: torch's own warnings, and explicit calls of `synchronize`."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.support.paths import ROOT


class SyncCounter:
    """Synchronisations so far: those that an operation implies, and those that are asked for."""

    def __init__(self, caught: list[Any]) -> None:
        self._caught = caught
        self.explicit = 0

    def counts(self) -> tuple[int, int]:
        """Warnings caught and explicit calls so far."""
        return len(self._caught), self.explicit

    def between(self, start: tuple[int, int], end: tuple[int, int], steps: int) -> dict[str, Any]:
        """Synchronisations per step between two counts, and the lines that they come from."""
        waits = [warning for warning in self._caught[start[0] : end[0]] if "synchroniz" in str(warning.message)]
        places = Counter(f"{_short(warning.filename)}:{warning.lineno}" for warning in waits)
        return {
            "implied": len(waits) / steps,
            "explicit": (end[1] - start[1]) / steps,
            "places": {place: count / steps for place, count in places.most_common()},
        }


def _short(name: str) -> str:
    path = Path(name)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else "/".join(path.parts[-3:])


@contextlib.contextmanager
def counted_syncs(device: str) -> Iterator[SyncCounter]:
    """Counts inside the block. On a CPU nothing waits, so all counts are 0."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        counter = SyncCounter(caught)
        if device != "cuda":
            yield counter
            return
        synchronize = torch.cuda.synchronize

        def counting(*arguments: Any) -> None:
            counter.explicit += 1
            synchronize(*arguments)

        torch.cuda.set_sync_debug_mode("warn")
        try:
            with mock.patch.object(torch.cuda, "synchronize", counting):
                yield counter
        finally:
            torch.cuda.set_sync_debug_mode("default")
