"""Blocks of a text corpus, read again for every epoch and shuffled within a window: memory does not grow with it."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from specdistill.data.batch import Example
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.pool import TEXTS_CHANGED
from specdistill.errors import DataError

_WINDOW = 1024
"""Blocks that wait to be drawn."""


class TextStream:
    """Every block once an epoch, in a new seeded order; a corpus beyond the window is shuffled roughly.

    Args:
        read: Begins at the first block.
        batch_size: Blocks per step, of all ranks together.
        seed: Random seed of the order.
        ranks: All read the same, and each takes its share of a step.
    """

    def __init__(self, read: Callable[[], Iterator[Example]], batch_size: int, seed: int, ranks: Ranks = ALONE) -> None:
        self._read, self._batch_size, self._seed, self._ranks = read, batch_size, seed, ranks
        self._epoch, self._drawn = 0, 0
        self._blocks, self._content = self._shuffled(), hashlib.sha256()

    def next_batch(self, step: int) -> list[Example]:
        return self._ranks.share([self._next() for _ in range(self._batch_size)])

    def measurements(self, *, reset: bool = False) -> Measurements:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "drawn": self._drawn, "content": self._content.hexdigest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Reads up to the place again.

        Raises:
            DataError: The blocks before it are other ones now.
        """
        self._epoch, self._drawn = state["epoch"], 0
        self._blocks, self._content = self._shuffled(), hashlib.sha256()
        for block in itertools.islice(self._blocks, state["drawn"]):
            self._count(block)
        # Checkpoints of older versions don't say it.
        if self._drawn < state["drawn"] or state.get("content", self._content.hexdigest()) != self._content.hexdigest():
            raise DataError(TEXTS_CHANGED)

    def _next(self) -> Example:
        while True:
            for block in self._blocks:
                self._count(block)
                return block
            self._epoch, self._drawn = self._epoch + 1, 0
            self._blocks, self._content = self._shuffled(), hashlib.sha256()

    def _count(self, block: Example) -> None:
        self._drawn += 1
        self._content.update(json.dumps([block.prompt_ids, block.answer_ids]).encode())

    def _shuffled(self) -> Iterator[Example]:
        order = random.Random(f"{self._seed}/{self._epoch}")
        window: list[Example] = []
        for block in self._read():
            if len(window) < _WINDOW:
                window.append(block)
                continue
            place = order.randrange(_WINDOW)
            drawn, window[place] = window[place], block
            yield drawn
        order.shuffle(window)
        yield from window
