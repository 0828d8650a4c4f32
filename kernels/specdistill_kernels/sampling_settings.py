"""Sampling settings in one form, whether they come as one number for all rows or as a tensor with one per row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SamplingSettings(NamedTuple):
    """Four tensors, each [rows], or [batch] where rows belong to requests."""

    temperature: Tensor
    """float32; 0 is greedy."""
    top_k: Tensor
    """int64; 0 is off."""
    top_p: Tensor
    """float32; 1 is off."""
    min_p: Tensor
    """float32; 0 is off."""

    def of_rows(self, rows: Tensor) -> SamplingSettings:
        """The settings of some rows, int64 [n]."""
        return SamplingSettings(*(setting[rows] for setting in self))


class KernelSettings(NamedTuple):
    """The same settings for kernels, which take one number for all rows as it is: a tensor of it is one more launch."""

    temperature: Tensor | float
    top_k: Tensor | float
    top_p: Tensor | float
    min_p: Tensor | float


def settings_of(
    rows: int,
    device: torch.device,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
) -> SamplingSettings:
    """Brings the settings to tensors, one value per row.

    Raises:
        ValueError: A tensor of another shape than [rows].
    """
    return SamplingSettings(
        per_row(temperature, rows, device, torch.float32),
        per_row(top_k, rows, device, torch.int64),
        per_row(top_p, rows, device, torch.float32),
        per_row(min_p, rows, device, torch.float32),
    )


def kernel_settings(
    rows: int,
    device: torch.device,
    temperature: float | Tensor,
    top_k: int | Tensor,
    top_p: float | Tensor,
    min_p: float | Tensor,
) -> tuple[KernelSettings, bool]:
    """Brings the settings to the form that kernels take, and says whether any of them can filter.

    A tensor counts as one that filters: reading it would wait for a GPU.

    Raises:
        ValueError: A tensor of another shape than [rows].
    """
    values = (temperature, top_k, top_p, min_p)
    settings = KernelSettings(
        *(per_row(value, rows, device, value.dtype) if isinstance(value, Tensor) else float(value) for value in values)
    )
    warm = settings.temperature != 0 if isinstance(settings.temperature, float) else True
    filters = any(isinstance(value, Tensor) or value != off for value, off in ((top_k, 0), (top_p, 1), (min_p, 0)))
    return settings, warm and filters


def per_row(value: float | Tensor, rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Turns one number into a tensor [rows], and passes a tensor [rows] through.

    Raises:
        ValueError: A tensor of another shape.
    """
    if not isinstance(value, Tensor):
        return torch.full((rows,), value, dtype=dtype, device=device)
    if value.shape != (rows,):
        raise ValueError(f"expected one value per row, [{rows}], got {tuple(value.shape)}")
    # Kernels index it by row: an expanded tensor has one number only.
    return value.to(device=device, dtype=dtype).contiguous()
