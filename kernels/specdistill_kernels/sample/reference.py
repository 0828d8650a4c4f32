"""The definition of sampling, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill_kernels import noise
from specdistill_kernels.filter_threshold.reference import filtered
from specdistill_kernels.sampling_settings import SamplingSettings


def sample_rows(logits: Tensor, keys: Sequence[Tensor], stream: int, settings: SamplingSettings) -> Tensor:
    """Computes `sample`; keys are seeds, positions and rounds, each [rows]."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    temperature = settings.temperature
    if (temperature > 0).any():
        # At temperature 0 the noise is left out, and 1 divides without harm.
        warm = torch.where(temperature > 0, temperature, 1.0)
        noisy = filtered(scores, settings) / warm[:, None]
        noisy += noise.gumbel(keys[0], keys[1], keys[2], stream, scores.shape[1])
        scores = noisy if (temperature > 0).all() else torch.where((temperature > 0)[:, None], noisy, scores)
    picked = scores.argmax(-1)
    # The noise is finite, and argmax takes a NaN for the largest: the picked logit shows whether its row is defined.
    peak = scores.gather(-1, picked[:, None])[:, 0]
    return picked.masked_fill(peak.isnan() | peak.isinf(), -1)
