"""The only two ways in which decoding moves numbers between host and device.

Numbers go to a GPU without waiting for it. Numbers come back in one transfer, which waits. So a round waits once: when
it reads what was kept, which the host must know to see where answers end. `tests/decoding/test_host_reads.py` holds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor


def to_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copies integers to a device, int64 of the numbers' shape. The host goes on at once."""
    if device.type != "cuda":
        return torch.tensor(numbers, dtype=torch.int64, device=device)
    # Copies from ordinary memory wait for the GPU, those from page-locked memory don't. torch keeps the page-locked
    # block until the copy is done.
    return torch.tensor(numbers, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def read_back(*tensors: Tensor) -> list[list[int]]:
    """Reads int64 tensors [n] of one device in a single transfer."""
    numbers = iter(torch.cat(tensors).tolist())
    return [list(itertools.islice(numbers, len(tensor))) for tensor in tensors]
