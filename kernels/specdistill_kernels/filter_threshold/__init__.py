"""Top-k, top-p and min-p as one number per row: the logit that a token must reach to stay."""

from __future__ import annotations

from torch import Tensor

from specdistill_kernels.backend import choose
from specdistill_kernels.filter_threshold.reference import threshold
from specdistill_kernels.sampling_settings import kernel_settings, settings_of

__all__ = ["filter_threshold"]


def filter_threshold(
    logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    min_p: float | Tensor = 0.0,
    backend: str = "auto",
) -> Tensor:
    """Finds the threshold for which `logits >= threshold` is what top-k, then top-p, then min-p keep.

    A threshold can't split ties: ids whose logits tie with the last one kept are kept too. On a GPU nothing is sorted
    and no mask is written.

    Args:
        logits: [rows, vocab], any float dtype, *before* temperature.
        temperature: Divides the logits before the softmax that top-p and min-p measure; 0 (greedy) filters nothing.
        top_k: Keep the K largest; 0 keeps all.
        top_p: Keep the smallest set of largest ids with at least this share of what top-k left; 1 keeps all.
        min_p: Keep ids at least this fraction as likely as the likeliest; 0 keeps all.
            Each setting is one number or a tensor [rows].
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`.

    Returns:
        float32 [rows] (float64 for float64 logits in torch), -inf where everything stays. The threshold itself need not
        be one of the logits. Rows that hold NaN give no usable threshold; see `sample`.

    Raises:
        ValueError: Shapes that disagree.
        RuntimeError: `fused` was asked for where it can't run.
    """
    if logits.ndim != 2:
        raise ValueError(f"expected logits [rows, vocab], got {tuple(logits.shape)}")
    per_row = (logits.shape[0], logits.device, temperature, top_k, top_p, min_p)
    if choose(backend, logits) == "fused":
        from specdistill_kernels.filter_threshold.fused import filter_threshold_fused

        return filter_threshold_fused(logits, kernel_settings(*per_row)[0])
    return threshold(logits, settings_of(*per_row))
