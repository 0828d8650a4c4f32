"""The draft's half of a round: it proposes tokens for every row of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.sampling import Keys, Sampling, pick, process


@dataclass(frozen=True)
class Proposal:
    """Tokens that the draft proposes in one round, flat over the rows, as serving engines keep them."""

    token_ids: Tensor
    """int64 [sum of counts]."""
    cumulative: Tensor
    """int64 [batch], running sum of the counts."""
    logits: Tensor | None
    """[sum of counts, vocab], before temperature; None if the draft picks its argmax."""


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
    counts, confidence = list(limits), [1.0] * len(limits)
    step_tokens: list[Tensor] = []
    step_logits: list[Tensor] = []
    for step in range(max(limits)):
        # Rows that want no more tokens must not draw: a row's randomness may not depend on the rest of its batch.
        drawing = [row for row, count in enumerate(counts) if count > step]
        if not drawing:
            break
        hidden = draft.read_next(step_tokens[-1]) if step_tokens else draft.read(unread)
        logits = draft.own_logits(hidden)
        picked = pick(logits[drawing], sampling, keys.of_rows(drawing), from_draft=True, ahead=step)
        tokens = torch.zeros(len(counts), dtype=torch.int64, device=hidden.device)
        tokens[drawing] = draft.model.to_token_ids(picked)
        step_tokens.append(tokens)
        if not sampling.greedy:
            step_logits.append(draft.model.to_vocabulary(logits))
        if length.watches_confidence:
            for row, probability in zip(drawing, probabilities(logits[drawing], picked, sampling), strict=True):
                confidence[row] *= probability
                if not length.goes_on(confidence[row]):
                    counts[row] = step + 1
    device = draft.model.device
    if step_tokens:
        ids = _flatten(step_tokens, counts)
        logits = _flatten(step_logits, counts) if step_logits else None
    else:
        ids = torch.empty(0, dtype=torch.int64, device=device)
        logits = None if sampling.greedy else torch.empty(0, draft.model.vocab_size, device=device)
    return Proposal(ids, torch.tensor(counts, device=device).cumsum(0), logits), counts


def probabilities(logits: Tensor, picked: Tensor, sampling: Sampling) -> list[float]:
    """The draft's probability of each picked token."""
    return process(logits, sampling).softmax(-1).gather(1, picked[:, None])[:, 0].tolist()


def _flatten(steps: list[Tensor], counts: list[int]) -> Tensor:
    """Puts the first `counts` steps of each row one row after the other. Each step is [batch, ...]."""
    rows = torch.stack(steps, dim=1)
    return torch.cat([row[:count] for row, count in zip(rows, counts, strict=True)])
