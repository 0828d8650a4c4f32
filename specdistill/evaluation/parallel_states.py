"""Hidden states of a parallel draft's guesses behind every token of an answer.

What it guesses depends on the text before a round and on nothing else of the round, so all rounds that could be are
known beforehand: behind each token of the answer one branch of mask tokens, many branches in a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specdistill.data.batch import Example
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.parallel_draft import read_with_masks
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.models import LanguageModel

_TOKENS = 256
"""Mask tokens of one pass, about."""


@torch.no_grad()
def guessing_states(draft: LanguageModel, sequences: Sequence[Example], depths: int) -> list[Tensor]:
    """Computes the hidden states from which a parallel draft guesses, for rounds that start anywhere in an answer.

    Args:
        draft: A parallel draft.
        sequences: Prompts with answers.
        depths: Tokens guessed per round.

    Returns:
        [answer, depths, hidden] per sequence: at [t, d] the states that guess answer token t + d in a round that starts
        with token t. Beyond the answer's end they are arbitrary.

    Raises:
        ModelError: The draft can't drop tokens again.
    """
    prove(draft).require_rollback(draft.name, "scoring a parallel draft")
    return [_states(draft, sequence, depths) for sequence in sequences]


def _states(draft: LanguageModel, sequence: Example, depths: int) -> Tensor:
    assert draft.parallel is not None
    text, first = [*sequence.prompt_ids, *sequence.answer_ids], len(sequence.prompt_ids) - 1
    masks = [draft.parallel.mask_id] * (depths - 1)
    reader = cached(draft, 1, len(text) + _TOKENS + depths)
    if type(reader) is not CachedModel:
        # Their positions depend on the length of the text, so each round is read as the decoder reads it.
        return torch.cat([*_one_by_one(draft, text, first, masks)])
    ends = torch.cat([hidden[0].clone() for _, hidden in reader.passes([text])])[first:-1]
    if not masks:
        return ends[:, None]
    parts = []
    size = max(1, _TOKENS // len(masks))
    for start in range(first, len(text) - 1, size):
        anchors = torch.arange(start, min(start + size, len(text) - 1), device=draft.device)
        positions = anchors[:, None] + torch.arange(1, depths, device=draft.device)
        ids = torch.tensor([masks * len(anchors)], device=draft.device)
        repeated = anchors.repeat_interleave(len(masks))[None]
        parts.append(reader.branches(ids, positions.reshape(1, -1), repeated)[0].unflatten(0, positions.shape).clone())
    return torch.cat([ends[:, None], torch.cat(parts)], dim=1)


def _one_by_one(draft: LanguageModel, text: list[int], first: int, masks: list[int]) -> Iterator[Tensor]:
    for end in range(first + 1, len(text)):
        yield read_with_masks(cached(draft, 1, end + len(masks)), [text[:end]], masks)
