"""Our on-policy and SKD steps in real shapes: tokens per second and peak memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from benchmarks.gpu.record import Record
from benchmarks.gpu.step_shapes import TINY, WARMUP_STEPS, Sizes, Steps, describe, make_pair, make_prompts
from benchmarks.training.step_trainer import BATCH, make_step_trainer
from specdistill.data.prompts import encode_all
from specdistill.models import ModelPair


def steps_of(method: Literal["distillspec", "skd"], pair: ModelPair, sizes: Sizes) -> dict[str, Any]:
    """Writes answers and trains on them, some times; the draft's forward pass is in bfloat16, its weights are not."""
    device = pair.draft.device.type
    prompts = make_prompts(sizes)
    encoded = encode_all(prompts, pair.target.tokenizer, 10_000)
    clock, writing, training = Steps(device), 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_step_trainer(
            pair, prompts, encoded, method, Path(folder), max_new_tokens=sizes.new, precision="bfloat16"
        )
        for step in range(1, WARMUP_STEPS + sizes.steps + 1):
            clock.begin()
            start = time.perf_counter()
            examples = trainer.write_examples(step)
            written = time.perf_counter()
            clock.tokens = trainer.train_on(examples)
            clock.end()
            if step > WARMUP_STEPS:
                writing, training = writing + written - start, training + time.perf_counter() - written
    return clock.result() | {"writing_share": writing / (writing + training)} | trainer.source.measurements()


def measure(record: Record) -> None:
    """A row per method."""
    sizes = TINY if record.dry else Sizes()
    pair = make_pair(record.device)
    described = {"target": describe(pair.target), "draft": describe(pair.draft), "autocast": "bfloat16"}
    record.set("sizes", described | {"batch": BATCH, "prompt": sizes.prompt, "new": sizes.new})
    methods: tuple[Literal["distillspec", "skd"], ...] = ("distillspec", "skd")
    for method in methods:
        row = {"contestant": "specdistill", "method": method}
        record.attempt("rows", row, lambda method=method: steps_of(method, pair, sizes))
