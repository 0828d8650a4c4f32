"""The definition of sampling, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill_kernels import noise
from specdistill_kernels.filter_threshold.reference import filtered
from specdistill_kernels.sampling_settings import SamplingSettings


def sample_rows(logits: Tensor, keys: Sequence[Tensor], stream: int, settings: SamplingSettings) -> Tensor:
    """See `sample`; keys are seeds, positions and rounds, each [rows]."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    peak = scores.amax(-1)
    temperature = settings.temperature
    if (temperature > 0).any():
        # At temperature 0 the noise is left out, and 1 divides without harm.
        warm = torch.where(temperature > 0, temperature, 1.0)
        noisy = filtered(scores, settings) / warm[:, None] + noise.gumbel(
            keys[0], keys[1], keys[2], stream, scores.shape[1]
        ).to(scores.dtype)
        scores = noisy if (temperature > 0).all() else torch.where((temperature > 0)[:, None], noisy, scores)
    # torch.amax passes NaN on.
    return scores.argmax(-1).masked_fill(peak.isnan() | peak.isinf(), -1)
