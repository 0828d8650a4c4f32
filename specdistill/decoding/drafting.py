"""The draft's half of a round: it proposes tokens for every row of a batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.sampling import Keys, Sampling, draw, ids_of, process
from specdistill.decoding.step_runner import Shapes
from specdistill.decoding.transfers import to_device

_UNREAD = 2
"""Tokens that a draft has to read first in a steady round: the last one that it proposed, if it was kept, and the
target's own."""


@dataclass(frozen=True)
class Proposal:
    """Tokens that the draft proposes in one round, flat over the rows, as serving engines keep them."""

    token_ids: Tensor
    """int64 [sum of counts]; -1 where a model's logits were undefined, which the decoder refuses."""
    cumulative: Tensor
    """int64 [batch], running sum of the counts."""
    logits: Tensor | None
    """[sum of counts, vocab], before temperature; None if the draft picks its argmax."""


def no_proposal(counts: list[int], vocab_size: int | None, device: torch.device) -> Proposal:
    """The proposal of rows that propose nothing; `vocab_size` is None where logits are not asked for."""
    logits = None if vocab_size is None else torch.empty(0, vocab_size, device=device)
    return Proposal(to_device([], device), to_device([0] * len(counts), device), logits)


def flatten(rectangle: Tensor, counts: Sequence[int]) -> Tensor:
    """Puts the first `counts` entries of each row one row after the other, without reading anything.

    Args:
        rectangle: [batch, longest, ...].
        counts: Entries of each row.
    """
    flat = rectangle.flatten(0, 1)
    longest = rectangle.shape[1]
    if all(count == longest for count in counts):
        return flat
    return flat[to_device([row * longest + at for row, count in enumerate(counts) for at in range(count)], flat.device)]


def unflatten(flat: Tensor, counts: Sequence[int]) -> Tensor:
    """Inverse of `flatten` for numbers [sum of counts]; rows are filled up with 0."""
    longest = max(counts)
    if all(count == longest for count in counts):
        return flat.view(len(counts), longest)
    index = to_device([row * longest + at for row, count in enumerate(counts) for at in range(count)], flat.device)
    return flat.new_zeros(len(counts) * longest).index_copy_(0, index, flat).view(len(counts), longest)


def propose(
    draft: CachedModel,
    unread: list[list[int]],
    limits: list[int],
    *,
    sampling: Sampling,
    keys: Keys,
    length: DraftLength,
) -> tuple[Proposal, list[int]]:
    """Lets the draft propose tokens, one step for all rows at a time.

    Nothing is read back, unless `length` watches confidence: then each step reads one probability per row.

    Args:
        draft: The draft and its cache, which grows by what the draft reads.
        unread: Tokens of each row that the draft has not read yet.
        limits: Most tokens that each row may propose, 0 or more.
        sampling: Temperature and filters of the draft.
        keys: Randomness of each row.
        length: Asked after each token whether a row goes on, if it watches confidence.

    Returns:
        The proposal, and the number of tokens that each row proposes.
    """
    model, most = draft.model, max(limits)
    if not most:
        return no_proposal(limits, None if sampling.greedy else model.vocab_size, model.device), limits
    steady = max(map(len, unread)) <= _UNREAD and draft.has_room(_UNREAD + most - 1)
    if draft.captures and steady and not length.watches_confidence:
        counts, (token_ids, *logits) = limits, _all_at_once(draft, unread, most, sampling, keys)
    else:
        token_ids, logits, counts = _step_by_step(draft, unread, limits, sampling, keys, length)
    cumulative = to_device(counts, model.device).cumsum(0)
    flat = [model.to_vocabulary(flatten(each, counts)) for each in logits]
    return Proposal(flatten(token_ids, counts), cumulative, flat[0] if flat else None), counts


def _step_by_step(
    draft: CachedModel, unread: list[list[int]], limits: list[int], sampling: Sampling, keys: Keys, length: DraftLength
) -> tuple[Tensor, list[Tensor], list[int]]:
    """Token ids [batch, steps], the logits that they were drawn from unless greedy, and each row's count."""
    counts, confidence = list(limits), [1.0] * len(limits)
    step_tokens: list[Tensor] = []
    step_logits: list[Tensor] = []
    for step in range(max(limits)):
        drawing = [row for row, count in enumerate(counts) if count > step]
        if not drawing:
            break
        # Undefined rows propose -1, which no embedding has; the decoder refuses it when it reads the proposal.
        hidden = draft.read_next(step_tokens[-1].clamp(min=0)) if step_tokens else draft.read(unread)
        logits = draft.own_logits(hidden)
        # What the other rows draw is no part of the proposal, and changes nothing: noise depends on counters alone.
        columns = draw(logits, sampling, keys, from_draft=True, ahead=step)
        step_tokens.append(ids_of(draft.model, columns))
        if not sampling.greedy:
            step_logits.append(logits)
        if length.watches_confidence:
            chances = probabilities(logits, columns, sampling)
            for row in drawing:
                confidence[row] *= chances[row]
                if not length.goes_on(confidence[row]):
                    counts[row] = step + 1
    logits = [torch.stack(step_logits, 1)] if step_logits else []
    return torch.stack(step_tokens, 1), logits, counts


def _all_at_once(
    draft: CachedModel, unread: list[list[int]], count: int, sampling: Sampling, keys: Keys
) -> tuple[Tensor, ...]:
    """Does the same in one step of the runner, where no row stops by itself."""
    device = draft.model.device
    token_ids = to_device([ids + [0] * (_UNREAD - len(ids)) for ids in unread], device)
    ends = to_device([len(ids) - 1 for ids in unread], device)
    step = functools.partial(_drafted, draft, count, sampling)
    with draft.clock:
        drafted = draft.step(
            ("draft", count, sampling), _UNREAD + count - 1, step, token_ids, ends, keys.seeds, keys.emitted
        )
    draft.calls += count
    draft.advance([len(ids) + count - 1 for ids in unread])
    return drafted


def _drafted(
    draft: CachedModel,
    count: int,
    sampling: Sampling,
    shapes: Shapes,
    starts: Tensor,
    token_ids: Tensor,
    ends: Tensor,
    seeds: Tensor,
    emitted: Tensor,
) -> tuple[Tensor, ...]:
    """All passes of a round and what they draw: token ids [rows, count], and unless greedy `own_logits` beside them."""
    model, keys = draft.model, Keys(seeds, emitted)
    hidden = draft.states(token_ids, starts, shapes)
    hidden = hidden.take_along_dim(ends[:, None, None], 1)[:, 0]
    starts = starts + ends + 1
    drawn, logits = [], []
    for ahead in range(count):
        if ahead:
            # The next position is read over padding, which stood there.
            hidden = draft.states(drawn[-1].clamp(min=0)[:, None], starts, shapes)[:, 0]
            starts = starts + 1
        logits.append(model.own_logits(hidden))
        drawn.append(ids_of(model, draw(logits[-1], sampling, keys, from_draft=True, ahead=ahead)))
    ids = torch.stack(drawn, 1)
    return (ids,) if sampling.greedy else (ids, torch.stack(logits, 1))


def probabilities(logits: Tensor, columns: Tensor, sampling: Sampling) -> list[float]:
    """The draft's probability of each column that it drew, read back; -1, an undefined row, gives any number."""
    return process(logits, sampling).softmax(-1).gather(1, columns.clamp(min=0)[:, None])[:, 0].tolist()
