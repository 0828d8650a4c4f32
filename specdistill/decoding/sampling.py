"""Applies `Sampling` to logits and picks tokens with counter-based noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.errors import ModelError
from specdistill.settings.sampling import Sampling
from specdistill_kernels import filter_threshold, noise, sample


@dataclass(frozen=True)
class Keys:
    """Counters that determine the random numbers of each row; see `specdistill_kernels.noise`."""

    seeds: Tensor
    """int64 [batch]: seed of each row."""
    emitted: Tensor
    """int64 [batch]: number of tokens that each row has emitted so far."""

    def of_rows(self, rows: list[int]) -> Keys:
        """Keys of some of the rows."""
        return Keys(self.seeds[rows], self.emitted[rows])


def process(logits: Tensor, sampling: Sampling) -> Tensor:
    """Applies temperature and filters to logits.

    Args:
        logits: [..., vocab].
        sampling: Temperature and filters.

    Returns:
        float32 [..., vocab]; -inf for ids that were filtered out. At temperature 0 the logits are returned unchanged,
        because only their argmax is used.
    """
    logits = logits.float()
    if sampling.greedy:
        return logits
    rows = logits.reshape(-1, logits.shape[-1])
    lowest_kept = filter_threshold(rows, **sampling.settings).reshape(*logits.shape[:-1], 1)
    return logits.masked_fill(logits < lowest_kept, -torch.inf) / sampling.temperature


def pick(
    logits: Tensor, sampling: Sampling, keys: Keys, *, from_draft: bool = False, ahead: int | Tensor = 0
) -> Tensor:
    """Picks one column in each row of unprocessed logits.

    Args:
        logits: [batch, vocab].
        sampling: Temperature and filters.
        keys: Randomness of each row, so that a row's tokens don't depend on the other rows of its batch.
        from_draft: Whether the draft made the logits. Draft and target use different random numbers.
        ahead: Number of tokens between the last emitted one and the one to pick; one for all rows, or int64 [batch].

    Returns:
        int64 [batch].

    Raises:
        ModelError: A row holds NaN, or no finite logit.
    """
    picked = sample(
        logits,
        seeds=keys.seeds,
        positions=keys.emitted + ahead,
        rounds=keys.emitted if from_draft else None,
        stream=noise.DRAFT if from_draft else noise.TARGET,
        **sampling.settings,
    )
    refuse_undefined(picked)
    return picked


def refuse_undefined(tokens: Tensor) -> None:
    """Refuses the -1 that kernels return for a row without a token to emit.

    Raises:
        ModelError: At least one row has no token.
    """
    if bool((tokens < 0).any()):
        raise ModelError(
            "a model's logits are NaN or infinite, so no token can be picked; load it in float32 or check its weights"
        )
