"""Who gives each step its sequences: a pool of finished ones, the draft itself, a mixture, or one after the other.

Every source holds its own seeded random stream and can write it down (`state_dict`), so that a resumed run goes on with
the sequences that the interrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Protocol

from specdistill.data.batch import Example
from specdistill.data.target_context import TargetView
from specdistill.distill.sequences.measurements import Measurements
from specdistill.distill.sequences.pool import restore_stream, stream_state
from specdistill.distill.target.place import Labeller


class Source(Protocol):
    """Gives the sequences of each step."""

    def next_batch(self, step: int) -> list[Example]:
        """This rank's sequences for optimiser step `step`, counted from 1; all ranks' together are the batch."""
        ...

    def measurements(self, *, reset: bool = False) -> Measurements:
        """Measurements since the last reset, for the run's history; empty for most sources."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the random streams stand, ready for JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


class NoText:
    """The source of a run that trains nothing."""

    def next_batch(self, step: int) -> list[Example]:
        raise AssertionError("nothing is trained")

    def measurements(self, *, reset: bool = False) -> Measurements:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Has no state."""


class Wrapped:
    """A source that adds something to another one's sequences; its measurements and state are the other one's."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def next_batch(self, step: int) -> list[Example]:
        """The other source's sequences; a subclass adds to them."""
        return self._source.next_batch(step)

    def measurements(self, *, reset: bool = False) -> Measurements:
        return self._source.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)


class Viewed(Wrapped):
    """A source whose sequences take the target's prompt along, where it sees more than the draft."""

    def __init__(self, source: Source, view: TargetView) -> None:
        super().__init__(source)
        self._view = view

    def next_batch(self, step: int) -> list[Example]:
        return self._view.examples(super().next_batch(step))


class Labelled(Wrapped):
    """A source whose sequences take their soft labels along."""

    def __init__(self, source: Source, labeller: Labeller) -> None:
        super().__init__(source)
        self._labeller = labeller

    def next_batch(self, step: int) -> list[Example]:
        sequences = super().next_batch(step)
        labels = self._labeller.soft_labels(sequences)
        return [dataclasses.replace(example, soft_labels=soft) for example, soft in zip(sequences, labels, strict=True)]


class Mixture:
    """GKD: with probability lmbda a step trains on `own`, else on `fixed`.

    One stream of coins, seeded alike on every rank: ranks that disagreed would wait for each other's collectives.
    """

    def __init__(self, own: Source, fixed: Source, lmbda: float, seed: int) -> None:
        self._own, self._fixed, self._lmbda = own, fixed, lmbda
        self._coin = random.Random(seed)

    def next_batch(self, step: int) -> list[Example]:
        # random() is in [0, 1): lmbda 0 never and lmbda 1 always takes the draft's own.
        return (self._own if self._coin.random() < self._lmbda else self._fixed).next_batch(step)

    def measurements(self, *, reset: bool = False) -> Measurements:
        return self._own.measurements(reset=reset) | self._fixed.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        parts = {"own": self._own.state_dict(), "fixed": self._fixed.state_dict()}
        return {"coin": stream_state(self._coin), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_stream(self._coin, state["coin"])
        self._own.load_state_dict(state["own"])
        self._fixed.load_state_dict(state["fixed"])


class Phases:
    """`first` up to and including step `last_step`, `then` after it."""

    def __init__(self, first: Source, then: Source, last_step: int) -> None:
        self._first, self._then, self._last_step = first, then, last_step

    def next_batch(self, step: int) -> list[Example]:
        return (self._first if step <= self._last_step else self._then).next_batch(step)

    def measurements(self, *, reset: bool = False) -> Measurements:
        return self._first.measurements(reset=reset) | self._then.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first.state_dict(), "then": self._then.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first.load_state_dict(state["first"])
        self._then.load_state_dict(state["then"])
