"""Verification and scoring of logits, as `benchmarks/ops/kernel_speed.py` measures them, with fewer turns."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.ops import kernel_contests, loss_contests
from benchmarks.support.device_timing import Timing, copied_terabytes_per_second

TINY = kernel_contests.Sizes(vocab=256, requests=((1, 4), (2, 4)), rows=4)


def _vllm(record: Record) -> Any:
    if record.vllm is None or record.dry:
        return None
    import torch

    from benchmarks.ops.vllm_sources import vllm_kernels

    (information,) = record.vllm.parent.glob("vllm*.dist-info")
    record.set("vllm", information.stem.split("-")[1])
    return vllm_kernels(record.vllm, torch.cuda.get_device_properties(0).multi_processor_count)


def measure(record: Record) -> None:
    """The sections of `kernel_speed.json`, in the same form."""
    sizes = TINY if record.dry else kernel_contests.Sizes()
    loss = loss_contests.Sizes(8, 16, 32, 256) if record.dry else loss_contests.Sizes()
    timing = Timing(record.device, rounds=1 if record.dry else 3, milliseconds=20)
    record.set("vocab", sizes.vocab)
    if not record.dry:
        record.set("copy_terabytes_per_second", round(copied_terabytes_per_second(), 3))
    vllm = _vllm(record)
    # Each section is written when it is done, so the quick ones come first.
    record.set("scoring", kernel_contests.scoring(timing, sizes))
    record.set("fused_divergence", loss_contests.divergences(timing, loss))
    record.free()
    rows: kernel_contests.Rows = []
    for requests in sizes.requests:
        rows += kernel_contests.verification(timing, dataclasses.replace(sizes, requests=(requests,)), vllm)
        record.set("verify", rows)
        record.free()
