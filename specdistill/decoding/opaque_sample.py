"""Sampling as one operation that torch.compile does not look into: on a CPU its noise is numpy's."""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels import sample


@torch.library.custom_op("specdistill::sample", mutates_args=())
def opaque_sample(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    rounds: Tensor | None,
    stream: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> Tensor:
    """Calls `specdistill_kernels.sample`."""
    return sample(
        logits, seeds=seeds, positions=positions, rounds=rounds, stream=stream,
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
    )  # fmt: skip


@opaque_sample.register_fake
def _shape(logits: Tensor, *_: object) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)
