"""Who gives each step its sequences: a pool of finished ones, the draft itself, a mixture, or one after the other.

Every source holds its own seeded random stream and can write it down (`state_dict`), so that a resumed run goes on with
the sequences that the interrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence as Many
from typing import Any, Protocol

from specdistill.data.batch import Provenance, Sequence
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Sampling, generate_plain
from specdistill.distill.ranks import ALONE, Ranks
from specdistill.distill.rollout_engine import RolloutEngine
from specdistill.models import LanguageModel
from specdistill_kernels import SoftLabels


class Source(Protocol):
    """Gives the sequences of each step."""

    def next_batch(self, step: int) -> list[Sequence]:
        """This rank's sequences for optimiser step `step`, counted from 1; all ranks' together are the batch."""
        ...

    def measurements(self, *, reset: bool = False) -> dict[str, Any]:
        """What was seen since the last reset, for the run's history; empty for most."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Where the random streams stand, ready for JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from there."""
        ...


class Drawing:
    """What sources have in common that draw from turns: their state is that of the turns."""

    _turns: Turns

    def measurements(self, *, reset: bool = False) -> dict[str, Any]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self._turns.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._turns.load_state_dict(state)


class Pool(Drawing):
    """A fixed set of sequences in a new seeded order each epoch."""

    def __init__(self, sequences: Many[Sequence], batch_size: int, seed: int, ranks: Ranks = ALONE) -> None:
        self._sequences = list(sequences)
        self._ranks = ranks
        self._turns = Turns(len(self._sequences), batch_size, seed)

    def next_batch(self, step: int) -> list[Sequence]:
        return [self._sequences[index] for index in self._ranks.share(self._turns.next())]


class OnPolicy(Drawing):
    """The draft answers prompts itself, with its current weights: it learns where its own mistakes lead."""

    def __init__(
        self,
        draft: LanguageModel,
        prompts: Many[Prompt],
        encoded: Many[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        batch_size: int,
        seed: int,
        ranks: Ranks = ALONE,
        engine: RolloutEngine | None = None,
        push_every: int = 1,
    ) -> None:
        self._engine, self._push_every = engine, push_every
        self._pushed: int | None = None
        self._draft, self._sampling, self._max_new_tokens = draft, sampling, max_new_tokens
        self._turns = self._prompts = PromptTurns(prompts, encoded, batch_size, seed, ranks)

    def next_batch(self, step: int) -> list[Sequence]:
        chosen = self._prompts.next_prompts()
        if not chosen:
            return []
        asked, seeds = [ids for _, ids, _ in chosen], [seed for _, _, seed in chosen]
        if self._engine is None:
            written = generate_plain(
                self._draft, asked, sampling=self._sampling, max_new_tokens=self._max_new_tokens, seeds=seeds
            )
        else:
            if self._pushed is None or step - self._pushed >= self._push_every:
                self._engine.push((name, each.detach()) for name, each in self._draft.model.named_parameters())
                self._pushed = step
            written = self._engine.write(asked, self._sampling, self._max_new_tokens, seeds)
        return [
            answer_sequence(name, ids, generation, Provenance.DRAFT)
            for (name, ids, _), generation in zip(chosen, written, strict=True)
        ]


class Labels(Protocol):
    """Knows what the target says about sequences without the target in memory."""

    def of(self, sequences: Many[Sequence]) -> list[SoftLabels]:
        """[answer, K] each, in the order of the sequences."""
        ...


class Labelled:
    """A source whose sequences take their soft labels along."""

    def __init__(self, source: Source, labels: Labels) -> None:
        self._source, self._labels = source, labels

    def next_batch(self, step: int) -> list[Sequence]:
        sequences = self._source.next_batch(step)
        found = self._labels.of(sequences)
        return [dataclasses.replace(each, soft_labels=soft) for each, soft in zip(sequences, found, strict=True)]

    def measurements(self, *, reset: bool = False) -> dict[str, Any]:
        return self._source.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._source.load_state_dict(state)


class Mixture:
    """GKD: with probability lmbda a step trains on `own`, else on `fixed`.

    One stream of coins, seeded alike on every rank: ranks that disagreed would wait for each other's collectives.
    """

    def __init__(self, own: Source, fixed: Source, lmbda: float, seed: int) -> None:
        self._own, self._fixed, self._lmbda = own, fixed, lmbda
        self._coin = random.Random(seed)

    def next_batch(self, step: int) -> list[Sequence]:
        # random() is in [0, 1): lmbda 0 never and lmbda 1 always takes the draft's own.
        return (self._own if self._coin.random() < self._lmbda else self._fixed).next_batch(step)

    def measurements(self, *, reset: bool = False) -> dict[str, Any]:
        return self._own.measurements(reset=reset) | self._fixed.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        parts = {"own": self._own.state_dict(), "fixed": self._fixed.state_dict()}
        return {"coin": _stream_state(self._coin), **parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _set_stream(self._coin, state["coin"])
        self._own.load_state_dict(state["own"])
        self._fixed.load_state_dict(state["fixed"])


class Phases:
    """`first` up to and including step `last_step`, `then` after it."""

    def __init__(self, first: Source, then: Source, last_step: int) -> None:
        self._first, self._then, self._last_step = first, then, last_step

    def next_batch(self, step: int) -> list[Sequence]:
        return (self._first if step <= self._last_step else self._then).next_batch(step)

    def measurements(self, *, reset: bool = False) -> dict[str, Any]:
        return self._first.measurements(reset=reset) | self._then.measurements(reset=reset)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first.state_dict(), "then": self._then.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._first.load_state_dict(state["first"])
        self._then.load_state_dict(state["then"])


class Turns:
    """0 .. count-1 in a new seeded order each epoch, `batch_size` at a time."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self._count, self._batch_size = count, batch_size
        self._random = random.Random(seed)
        self._queue: list[int] = []

    def next(self) -> list[int]:
        while len(self._queue) < self._batch_size:
            epoch = list(range(self._count))
            self._random.shuffle(epoch)
            self._queue.extend(epoch)
        taken, self._queue = self._queue[: self._batch_size], self._queue[self._batch_size :]
        return taken

    def state_dict(self) -> dict[str, Any]:
        return {"random": _stream_state(self._random), "queue": list(self._queue)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _set_stream(self._random, state["random"])
        self._queue = list(state["queue"])


class PromptTurns(Turns):
    """Prompts in a new seeded order each epoch, each time with a new seed for sampling its answer."""

    def __init__(
        self, prompts: Many[Prompt], encoded: Many[list[int]], batch_size: int, seed: int, ranks: Ranks = ALONE
    ) -> None:
        super().__init__(len(prompts), batch_size, seed)
        self._prompts = [(prompt.id, ids) for prompt, ids in zip(prompts, encoded, strict=True)]
        self._ranks = ranks

    def next_prompts(self) -> list[tuple[str, list[int], int]]:
        """(prompt id, token ids, seed) of each prompt whose turn it is on this rank."""
        return self._ranks.share([(*self._prompts[index], self._random.getrandbits(48)) for index in self.next()])


def answer_sequence(prompt_id: str, encoded: list[int], generation: Generation, writer: Provenance) -> Sequence:
    """A generation as a training sequence, all of it written by one model."""
    ids = tuple(generation.token_ids)
    return Sequence(prompt_id, tuple(encoded), ids, (int(writer),) * len(ids))


def _stream_state(stream: random.Random) -> list[Any]:
    version, words, carried = stream.getstate()
    return [version, list(words), carried]


def _set_stream(stream: random.Random, state: list[Any]) -> None:
    version, words, carried = state
    stream.setstate((version, tuple(words), carried))
