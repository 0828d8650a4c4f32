"""Drafts without weights: runs copied out of the text, alone or before a model is asked.

They search the text on the host, which has it from the transfer that ends each round. Nothing else is read for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from specdistill.decoding.draft_kinds import ModelDraft, ModelDrafting
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal
from specdistill.decoding.lookup import NewLookup
from specdistill.decoding.sampling import Keys, Sampling
from specdistill.decoding.transfers import to_device


class FreeDraft:
    """Runs copied out of each row's own text, and out of earlier answers where the lookup remembers them.

    Args:
        new_lookup: Begins a text.
        vocab_size: Columns of the target's logits.
    """

    is_point_mass = True

    def __init__(self, new_lookup: NewLookup, vocab_size: int) -> None:
        self._new_lookup, self._vocab_size = new_lookup, vocab_size

    def require_ready(self) -> None:
        """Nothing can be wrong with it."""

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, device: torch.device
    ) -> FreeDrafting:
        return FreeDrafting(self._new_lookup, prompts, None if sampling.greedy else self._vocab_size, device)

    def generating(self) -> AbstractContextManager[object]:
        return contextlib.nullcontext()


class FreeDrafting:
    """A lookup for each row. Emitted tokens are never taken back.

    Args:
        new_lookup: Begins a text.
        prompts: Token ids.
        vocab_size: Columns of the logits that say what was proposed; None where none are asked for.
        device: Where proposals are needed.
    """

    seconds = 0.0

    def __init__(
        self, new_lookup: NewLookup, prompts: list[list[int]], vocab_size: int | None, device: torch.device
    ) -> None:
        self._lookups = [new_lookup() for _ in prompts]
        self._read = [len(prompt) for prompt in prompts]
        self._vocab_size, self._device = vocab_size, device
        for lookup, prompt in zip(self._lookups, prompts, strict=True):
            lookup.read(prompt)

    def unread(self, texts: Sequence[list[int]]) -> int:
        return 0

    def copies(self, texts: Sequence[list[int]], limits: list[int]) -> list[list[int]]:
        """The run that each row copies; empty where none was found."""
        self.commit(texts)
        return [lookup.copy(limit) if limit else [] for lookup, limit in zip(self._lookups, limits, strict=True)]

    def proposal(self, runs: list[list[int]]) -> Proposal:
        """The runs as the verification takes them: where it reads the draft's logits, each token is certain."""
        flat = to_device([token for run in runs for token in run], self._device)
        counts = to_device([len(run) for run in runs], self._device)
        logits = None if self._vocab_size is None else _certain(flat, self._vocab_size)
        return Proposal(flat, counts.cumsum(0), logits)

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        runs = self.copies(texts, limits)
        return self.proposal(runs), [len(run) for run in runs]

    def commit(self, texts: Sequence[list[int]]) -> None:
        # The ends of answers too: other texts may copy them.
        for row, text in enumerate(texts):
            self._lookups[row].read(text[self._read[row] :])
            self._read[row] = len(text)

    def select(self, rows: list[int]) -> None:
        self._lookups = [self._lookups[row] for row in rows]
        self._read = [self._read[row] for row in rows]


def _certain(token_ids: Tensor, vocab_size: int) -> Tensor:
    """Logits of point masses, [tokens, vocab]."""
    logits = torch.full((len(token_ids), vocab_size), -torch.inf, device=token_ids.device)
    return logits.scatter_(1, token_ids[:, None], 0.0)


class FreeThenModel:
    """A model that is asked only where nothing is found to copy.

    Args:
        free: Copies.
        model: Proposes elsewhere.
    """

    is_point_mass = False

    def __init__(self, free: FreeDraft, model: ModelDraft) -> None:
        self._free, self._model = free, model

    def require_ready(self) -> None:
        self._model.require_ready()

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, device: torch.device
    ) -> FreeThenModelDrafting:
        arguments = prompts, max_new_tokens, room, sampling, device
        return FreeThenModelDrafting(self._free.begin(*arguments), self._model.begin(*arguments))

    def generating(self) -> AbstractContextManager[object]:
        return self._model.generating()


class FreeThenModelDrafting:
    """Both at work. The model reads what it missed when it is next asked."""

    def __init__(self, free: FreeDrafting, model: ModelDrafting) -> None:
        self._free, self._model = free, model

    @property
    def seconds(self) -> float:
        return self._model.seconds

    def unread(self, texts: Sequence[list[int]]) -> int:
        return self._model.unread(texts)

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        runs = self._free.copies(texts, limits)
        rest = [0 if run else limit for run, limit in zip(runs, limits, strict=True)]
        copied = self._free.proposal(runs)
        if not any(rest):
            return copied, [len(run) for run in runs]
        drafted, counts = self._model.propose(texts, rest, keys=keys, length=length)
        return _merged(copied, drafted, runs, counts)

    def commit(self, texts: Sequence[list[int]]) -> None:
        self._free.commit(texts)
        self._model.commit(texts)

    def select(self, rows: list[int]) -> None:
        self._free.select(rows)
        self._model.select(rows)


def _merged(
    copied: Proposal, drafted: Proposal, runs: list[list[int]], counts: list[int]
) -> tuple[Proposal, list[int]]:
    """Puts two proposals together, of which each row has tokens in one at most."""
    lengths = [len(run) for run in runs]
    both = [copy + count for copy, count in zip(lengths, counts, strict=True)]

    def by_row(first: Tensor, second: Tensor) -> Tensor:
        pairs = zip(first.split(lengths), second.split(counts), strict=True)
        return torch.cat([part for pair in pairs for part in pair])

    logits = None
    if copied.logits is not None and drafted.logits is not None:
        logits = by_row(copied.logits.to(drafted.logits.dtype), drafted.logits)
    cumulative = to_device(both, copied.token_ids.device).cumsum(0)
    return Proposal(by_row(copied.token_ids, drafted.token_ids), cumulative, logits), both
