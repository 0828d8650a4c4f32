"""Applies `Sampling` to logits and picks tokens with counter-based noise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.decoding.transfers import read_back, to_device
from specdistill.errors import ModelError
from specdistill.models import LanguageModel
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
        """Keys of some of the rows, which may repeat."""
        index = to_device(rows, self.seeds.device)
        return Keys(self.seeds[index], self.emitted[index])


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


def draw(
    logits: Tensor, sampling: Sampling, keys: Keys, *, from_draft: bool = False, ahead: int | Tensor = 0
) -> Tensor:
    """Picks one column in each row of unprocessed logits, and reads nothing back.

    Args:
        logits: [batch, vocab].
        sampling: Temperature and filters.
        keys: Randomness of each row, so that a row's tokens don't depend on the other rows of its batch.
        from_draft: Whether the draft made the logits. Draft and target use different random numbers.
        ahead: Number of tokens between the last emitted one and the one to pick; one for all rows, or int64 [batch].

    Returns:
        int64 [batch]; -1 for a row that holds NaN, or no finite logit. `refuse_undefined` is for whoever reads them.
    """
    return sample(
        logits,
        seeds=keys.seeds,
        positions=keys.emitted + ahead,
        rounds=keys.emitted if from_draft else None,
        stream=noise.DRAFT if from_draft else noise.TARGET,
        **sampling.settings,
    )


def pick(
    logits: Tensor, sampling: Sampling, keys: Keys, *, from_draft: bool = False, ahead: int | Tensor = 0
) -> Tensor:
    """Picks as `draw` does, and reads the columns to see whether all rows have one.

    Raises:
        ModelError: A row holds NaN, or no finite logit.
    """
    picked = draw(logits, sampling, keys, from_draft=from_draft, ahead=ahead)
    refuse_undefined(*read_back(picked))
    return picked


def ids_of(model: LanguageModel, columns: Tensor) -> Tensor:
    """Token ids of columns of a model's `own_logits`, as `draw` picks them; -1 stays -1."""
    if model.kept_ids is None:
        return columns
    return torch.where(columns < 0, columns, model.to_token_ids(columns.clamp(min=0)))


def refuse_undefined(token_ids: Iterable[int]) -> None:
    """Refuses the -1 that `draw` and `verify` return for a row without a token to emit.

    Raises:
        ModelError: At least one row has no token.
    """
    if any(token < 0 for token in token_ids):
        raise ModelError(
            "a model's logits are NaN or infinite, so no token can be picked; load it in float32 or check its weights"
        )
