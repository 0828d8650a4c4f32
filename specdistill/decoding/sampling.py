"""Applies `Sampling` to logits, and picks tokens with counter-based noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.errors import ModelError
from specdistill.settings.sampling import Sampling
from specdistill_kernels import filter_threshold, noise, sample


@dataclass(frozen=True)
class Keys:
    """What the randomness of a batch's rows comes from; see `specdistill_kernels.noise`."""

    seeds: Tensor
    """int64 [batch]."""
    emitted: Tensor
    """Tokens each row has emitted so far, int64 [batch]."""

    def of_rows(self, rows: list[int]) -> Keys:
        """The same for some of the rows."""
        return Keys(self.seeds[rows], self.emitted[rows])


def process(logits: Tensor, sampling: Sampling) -> Tensor:
    """Applies temperature and filters to logits.

    Args:
        logits: [..., vocab].
        sampling: Temperature and filters.

    Returns:
        [..., vocab] float32, -inf where an id was filtered out. At temperature 0 the logits come back as they are: only
        their argmax is used then.
    """
    logits = logits.float()
    if sampling.greedy:
        return logits
    rows = logits.reshape(-1, logits.shape[-1])
    lowest = filter_threshold(rows, **sampling.settings).reshape(*logits.shape[:-1], 1)
    return logits.masked_fill(logits < lowest, -torch.inf) / sampling.temperature


def pick(logits: Tensor, sampling: Sampling, keys: Keys, *, from_draft: bool = False, ahead: int = 0) -> Tensor:
    """Picks one column per row of unprocessed logits.

    Args:
        logits: [batch, vocab], of the target, or of the draft (`from_draft`), whose noise is another.
        sampling: Temperature and filters.
        keys: Each row's randomness, so that a row's tokens don't depend on who shares its batch.
        from_draft: Whether the logits are the draft's.
        ahead: Tokens between those emitted and the one that is picked.

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
    """Raises ModelError where a kernel found no token to emit."""
    if bool((tokens < 0).any()):
        raise ModelError(
            "a model's logits are NaN or infinite, so no token can be picked; load it in float32 or check its weights"
        )
