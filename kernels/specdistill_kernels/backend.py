"""The choice between Triton and torch: made here, once, and never downgraded silently."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

BACKENDS = ("auto", "fused", "torch")


def choose(requested: str, tensor: Tensor) -> str:
    """Chooses `fused` (Triton) or `torch` (any device).

    Args:
        requested: `auto` takes Triton on a GPU where it is installed, and torch otherwise.
        tensor: A tensor on the device that holds the data.

    Raises:
        ValueError: An unknown name.
        RuntimeError: `fused` was asked for and can't run here; says what is missing.
    """
    if requested not in BACKENDS:
        raise ValueError(f"unknown backend {requested!r}; choose one of {', '.join(BACKENDS)}")
    if requested == "torch":
        return "torch"
    installed = importlib.util.find_spec("triton") is not None
    if requested == "auto":
        return "fused" if tensor.is_cuda and installed else "torch"
    if not installed:
        raise RuntimeError("backend 'fused' needs the package triton: pip install triton")
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
        raise RuntimeError(
            f"backend 'fused' needs a GPU, the data is on {tensor.device} (TRITON_INTERPRET=1, set before triton is "
            "imported, interprets kernels on a CPU for tests)"
        )
    return "fused"


def warps_of(threads: int) -> int:
    """Triton's num_warps for this many threads. A warp has 64 lanes on AMD's data-centre GPUs, 32 elsewhere."""
    return threads // (64 if torch.version.hip else 32)


def unit_stride(logits: Tensor) -> Tensor:
    """Returns logits in which the entries of a row are neighbours, copied where they were not.

    Otherwise every load would fetch a sector for one entry. The rows themselves may lie anywhere.
    """
    return logits if logits.stride(1) == 1 else logits.contiguous()
