"""Fixed sets that steps draw from, in a new seeded order each epoch, with a state that a resumed run takes up."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.distill.processes.ranks import ALONE, Ranks
from specdistill.distill.sequences.measurements import Measurements
from specdistill.errors import DataError

TEXTS_CHANGED = (
    "the texts to train on are no longer those of the checkpoint: prompts, answers, labels or --text have changed; "
    "restore them to resume, or start again with another --output"
)


class SampledSource:
    """Base of sources that draw from a sampler: their state is the sampler's."""

    _sampler: EpochSampler

    def measurements(self, *, reset: bool = False) -> Measurements:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self._sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sampler.load_state_dict(state)


class Pool(SampledSource):
    """A fixed set of sequences in a new seeded order each epoch; `measured` is known of the set."""

    def __init__(
        self,
        sequences: Sequence[Example],
        batch_size: int,
        seed: int,
        ranks: Ranks = ALONE,
        measured: Mapping[str, float | None] = {},
    ) -> None:
        self._sequences, self._measured = list(sequences), measured
        self._ranks = ranks
        self._sampler = EpochSampler(len(self._sequences), batch_size, seed)

    def next_batch(self, step: int) -> list[Example]:
        return [self._sequences[index] for index in self._ranks.share(self._sampler.next())]

    def measurements(self, *, reset: bool = False) -> Measurements:
        """Numbers of the set itself, such as its coverage; the same in every line of the history."""
        return dict(self._measured)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"content": self._content}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Checkpoints of older versions don't say it.
        if state.get("content", self._content) != self._content:
            raise DataError(TEXTS_CHANGED)
        super().load_state_dict(state)

    @cached_property
    def _content(self) -> str:
        """Hash of all sequences in order, without their labels."""
        digest = hashlib.sha256()
        for row in self._sequences:
            digest.update(json.dumps([row.prompt_ids, row.answer_ids]).encode())
        return digest.hexdigest()


class EpochSampler:
    """0 .. count-1 in a new seeded order each epoch, `batch_size` at a time."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        if count < 1:
            raise DataError("there is no text to train on: every answer was left out")
        self._count, self._batch_size = count, batch_size
        self._random = random.Random(seed)
        self._queue: list[int] = []

    def next(self) -> list[int]:
        """Indices of the next batch."""
        while len(self._queue) < self._batch_size:
            epoch = list(range(self._count))
            self._random.shuffle(epoch)
            self._queue.extend(epoch)
        taken, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"random": stream_state(self._random), "queue": list(self._queue)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_stream(self._random, state["random"])
        self._queue = list(state["queue"])


class PromptSampler(EpochSampler):
    """Prompts in a new seeded order each epoch, each time with a new seed for sampling its answer."""

    def __init__(
        self, prompts: Sequence[Prompt], encoded: Sequence[list[int]], batch_size: int, seed: int, ranks: Ranks = ALONE
    ) -> None:
        super().__init__(len(prompts), batch_size, seed)
        self._prompts = [(prompt.id, ids) for prompt, ids in zip(prompts, encoded, strict=True)]
        self._ranks = ranks

    def next_prompts(self) -> list[tuple[str, list[int], int]]:
        """(prompt id, token ids, seed) of each prompt of the next batch that is this rank's."""
        return self._ranks.share([(*self._prompts[index], self._random.getrandbits(48)) for index in self.next()])


def stream_state(stream: random.Random) -> list[Any]:
    """State of a random stream, ready for JSON."""
    version, words, carried = stream.getstate()
    return [version, list(words), carried]


def restore_stream(stream: random.Random, state: list[Any]) -> None:
    """Inverse of `stream_state`, in place."""
    version, words, carried = state
    stream.setstate((version, tuple(words), carried))
