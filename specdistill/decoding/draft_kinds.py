"""Drafts as the decoder sees them: values that say how they propose. Here the protocol, and the draft that is a model.

`free_drafts` has those without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal, propose
from specdistill.decoding.generation import check_lengths
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.decoding.sampling import Keys, Sampling
from specdistill.models import LanguageModel


class Drafting(Protocol):
    """A draft at work. Its rows are those of a batch, and leave it with `select`."""

    @property
    def seconds(self) -> float:
        """Time inside a draft model's passes so far."""
        ...

    def unread(self, texts: Sequence[list[int]]) -> int:
        """Tokens that a draft model has to read first, in the row that has most of them."""
        ...

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        """Proposes tokens for every row.

        Args:
            texts: Each row's prompt and answer so far.
            limits: Most tokens that each row may propose, 0 or more.
            keys: Randomness of each row.
            length: Asked after each token of a model whether a row goes on, if it watches confidence.

        Returns:
            The proposal, and the number of tokens that each row proposes.
        """
        ...

    def commit(self, texts: Sequence[list[int]]) -> None:
        """Drops the proposals of a round that were not kept.

        Args:
            texts: Each row's prompt and answer after the round, of rows that end with it too.
        """
        ...

    def select(self, rows: list[int]) -> None:
        """Keeps only the given rows."""
        ...


class DraftKind(Protocol):
    """A draft that is not at work yet."""

    @property
    def is_point_mass(self) -> bool:
        """Whether proposals are not drawn: then a sampling target keeps x with probability p_target(x)."""
        ...

    def require_ready(self) -> None:
        """Refuses what can't draft.

        Raises:
            ModelError: A model can't be rolled back (see `proof`).
        """
        ...

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, target: TargetCache
    ) -> Drafting:
        """Starts drafting for a batch.

        Args:
            prompts: Token ids.
            max_new_tokens: Limit per answer.
            room: Positions that a row needs beyond its prompt.
            sampling: How a model picks its tokens; greedy where the rule knows no probabilities of the draft.
            target: The target's cache, which has read nothing yet.

        Raises:
            DataError: A prompt is empty, or does not fit a model's context.
        """
        ...

    def generating(self) -> AbstractContextManager[object]:
        """Entered around a whole `generate` call."""
        ...


class ModelDraft:
    """A language model that proposes one token per pass.

    Args:
        model: It has the target's vocabulary; with a trimmed head it proposes only the kept ids.
    """

    is_point_mass = False

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def require_ready(self) -> None:
        prove(self.model).require_rollback(self.model.name)

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, target: TargetCache
    ) -> ModelDrafting:
        check_lengths(prompts, max_new_tokens, self.model)
        return ModelDrafting(self.model, prompts, room, sampling)

    def generating(self) -> AbstractContextManager[object]:
        return self.model.generating()


class ModelDrafting:
    """A model and its cache. It reads a prompt when it first proposes, so plain steps never pay for it."""

    def __init__(self, model: LanguageModel, prompts: list[list[int]], room: int, sampling: Sampling) -> None:
        self._cached = cached(model, len(prompts), max(map(len, prompts)) + room)
        self._sampling = sampling

    @property
    def seconds(self) -> float:
        return self._cached.seconds

    def unread(self, texts: Sequence[list[int]]) -> int:
        return max(len(text) - read for text, read in zip(texts, self._cached.lengths, strict=True))

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        unread = [text[read:] for text, read in zip(texts, self._cached.lengths, strict=True)]
        proposal, counts = propose(self._cached, unread, limits, sampling=self._sampling, keys=keys, length=length)
        # Rows that wanted fewer tokens than others read padding beside them, which must not count as read.
        own = zip(texts, counts, self._cached.lengths, strict=True)
        self._cached.set_lengths([min(read, len(text) + count) for text, count, read in own])
        return proposal, counts

    def commit(self, texts: Sequence[list[int]]) -> None:
        # All but the last token, which is read next; it may have read less than was kept.
        lengths = zip(texts, self._cached.lengths, strict=True)
        self._cached.set_lengths([min(len(text) - 1, read) for text, read in lengths])

    def select(self, rows: list[int]) -> None:
        self._cached.select(rows)
