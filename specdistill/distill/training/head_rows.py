"""The guesses of a head's rounds on a batch: one row for each step of each round."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdistill.data.batch import Batch
from specdistill.distill.training.parallel_rows import Guesses
from specdistill.models.eagle3 import Anchors, Eagle3Head, unrolled_states


class HeadRows(NamedTuple):
    """Hidden states before the head's norm, [guesses, hidden], and what each guesses; first steps come first."""

    hidden: Tensor
    guesses: Guesses


def head_rows(head: Eagle3Head, batch: Batch, steps: int) -> HeadRows:
    """Runs every round of every answer that the head would be asked for.

    The target writes the answer's first token in its pass over the prompt. So the first round begins there: it reads
    that token with the features of the prompt, and guesses the second.

    Args:
        head: The head.
        batch: With the target's states (`aux`).
        steps: Steps of a round.
    """
    assert batch.aux is not None, "a head's batch carries the target's states"
    lengths = batch.response_mask.sum(1)
    counts = (lengths - 1).clamp(min=0)
    # Position of the prompt's last token; rows without an answer have no round anyway.
    first = (batch.response_mask.int().argmax(1) - 1).clamp(min=0)
    # No answer of the batch is long enough for more.
    steps = min(steps, max(1, int(counts.max())))
    states = unrolled_states(head, batch.input_ids, batch.aux, Anchors(first, counts), steps)
    before = lengths.cumsum(0) - lengths
    rounds = torch.arange(states[0].shape[1], device=lengths.device)
    hidden, predicted, depths = [], [], []
    for step, state in enumerate(states):
        guessed = rounds < counts[:, None] - step
        tokens = (before[:, None] + rounds + 1 + step)[guessed]
        hidden.append(state[guessed])
        predicted.append(tokens)
        depths.append(torch.full_like(tokens, step + 1))
    return HeadRows(torch.cat(hidden), Guesses(torch.cat(predicted), torch.cat(depths)))
