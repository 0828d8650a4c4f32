"""The distillation loss in the shapes of real pairs: ours, plain torch, Liger's and TRL's."""

from __future__ import annotations

from benchmarks.gpu.record import Record
from benchmarks.ops.loss_contests import KINDS, Sizes, divergences
from benchmarks.support.device_timing import Timing

REAL = (
    Sizes(4096, 2048, 4096, 128256),
    Sizes(4096, 1024, 4096, 151936),
    Sizes(4096, 2048, 4096, 151936),
)
"""A 1B draft of Llama's, a 0.6B draft of Qwen's, and a 1.7B one."""
TINY = (Sizes(8, 16, 32, 256),)
CHOSEN = tuple(kind for kind in KINDS if kind[0] != "rkl")
"""rkl takes as long as fkl."""


def measure(record: Record) -> None:
    """Time and extra memory of forward and backward, a row per divergence."""
    timing = Timing(record.device, rounds=1 if record.dry else 3, milliseconds=40)
    record.set("tokens", (TINY if record.dry else REAL)[0].tokens)
    for sizes in TINY if record.dry else REAL:
        for kind in CHOSEN:
            row = {"vocab": sizes.vocab}
            record.attempt(
                "rows",
                row,
                lambda sizes=sizes, kind=kind: divergences(timing, sizes, chunked=True, kinds=(kind,))[0],
            )
