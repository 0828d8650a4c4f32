"""Draws one token per row from filtered logits, reproducibly, without writing probabilities or noise."""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels import noise
from specdistill_kernels.backend import choose
from specdistill_kernels.sample.reference import sample_rows
from specdistill_kernels.sampling_settings import kernel_settings, per_row, settings_of

__all__ = ["sample"]


def sample(
    logits: Tensor,
    *,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    rounds: Tensor | None = None,
    stream: int = noise.TARGET,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Samples by Gumbel-max: `(filtered / temperature + noise).argmax(-1)`, noise from (seed, position, column).

    Args:
        logits: [rows, vocab], any float dtype; -inf means probability 0.
        seeds: int64 [rows], one per request. Not needed where every temperature is 0.
        positions: int64 [rows], which token of its answer the row decides: the same seed and position draw the same.
        rounds: int64 [rows], tokens already emitted when a draft began; only read for the stream of drafts.
        stream: `noise.TARGET` or `noise.DRAFT`: a draft must not share the target's noise under the rule `sampled`.
        temperature, top_k, top_p, min_p: One number or a tensor [rows]; see `filter_threshold`. Temperature 0 picks the
            largest logit, the lowest id where several tie.
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`.

    Returns:
        int64 [rows]; -1 for a row that holds NaN or +inf, or nothing above -inf.

    Raises:
        ValueError: Shapes that disagree, or seeds missing where they are needed.
        RuntimeError: `fused` was asked for where it can't run.
    """
    if logits.ndim != 2:
        raise ValueError(f"expected logits [rows, vocab], got {tuple(logits.shape)}")
    rows, device = logits.shape[0], logits.device
    greedy = not isinstance(temperature, Tensor) and temperature == 0
    if not greedy and (seeds is None or positions is None):
        raise ValueError("sampling needs seeds and positions, one per row")
    if stream == noise.TARGET:
        rounds = None
    keys = [None if key is None else per_row(key, rows, device, torch.int64) for key in (seeds, positions, rounds)]
    settings = (rows, device, temperature, top_k, top_p, min_p)
    if choose(backend, logits) == "fused":
        from specdistill_kernels.sample.fused import sample_fused

        return sample_fused(logits, keys, stream, *kernel_settings(*settings), greedy)
    keys = [per_row(0, rows, device, torch.int64) if key is None else key for key in keys]
    return sample_rows(logits, keys, stream, settings_of(*settings))
