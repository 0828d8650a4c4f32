"""TRL's on-policy steps with the same pair, prompts and lengths as `training.py`."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

from benchmarks.gpu.record import Record
from benchmarks.gpu.step_shapes import TINY, WARMUP_STEPS, Sizes, Steps, make_pair, make_prompts
from benchmarks.training.step_trainer import BATCH

CONTESTANTS = (("distillation", False), ("gkd", False), ("distillation", True))
"""Trainer, and gradient checkpointing, which TRL ships switched on."""


def steps_of(kind: Any, checkpointing: bool, device: str, sizes: Sizes) -> dict[str, Any]:
    """Some steps of one trainer with models of its own."""
    from benchmarks.training.trl_trainers import make_trl_trainer

    pair, clock = make_pair(device), Steps(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trl_trainer(
            kind,
            pair.draft.model,
            pair.target.model,
            pair.target.tokenizer,
            make_prompts(sizes),
            clock,
            max_new_tokens=sizes.new,
            max_length=sizes.prompt + sizes.new + 64,
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=WARMUP_STEPS + sizes.steps,
            use_cpu=device == "cpu",
            bf16=device != "cpu",
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
    return clock.result()


def measure(record: Record) -> None:
    """A row per trainer; a record that says so where TRL is not installed."""
    record.set("installed", importlib.util.find_spec("trl") is not None)
    if importlib.util.find_spec("trl") is None:
        return
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    sizes = TINY if record.dry else Sizes()
    record.set("sizes", {"batch": BATCH, "prompt": sizes.prompt, "new": sizes.new})
    for kind, checkpointing in CONTESTANTS[: 2 if record.dry else 3]:
        row = {"contestant": f"trl-{kind}", "gradient_checkpointing": checkpointing}
        record.attempt(
            "rows",
            row,
            lambda kind=kind, checkpointing=checkpointing: steps_of(kind, checkpointing, record.device, sizes),
        )
