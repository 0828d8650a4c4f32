"""A contestant of `training_step.py`: one of TRL's trainers, which waits for its turn before every step."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.support.interleaved import Interleaved
from benchmarks.support.paths import target_file
from benchmarks.training.step_trainer import BATCH, MAX_NEW_TOKENS, short_prompts
from benchmarks.training.trl_trainers import make_trl_trainer
from specdistill.models import load_model


def run_trl(gkd: bool, gradient_checkpointing: bool, draft: str, output: Path) -> None:
    """Takes turns until the comparing script ends the process.

    Args:
        gkd: GKDTrainer; otherwise DistillationTrainer.
        gradient_checkpointing: On as TRL ships it. It then generates without a KV cache.
        draft: Directory of the draft.
        output: Directory that the trainer asks for.
    """
    target = load_model(str(target_file()))
    model = AutoModelForCausalLM.from_pretrained(draft, dtype=torch.float32)
    tokenizer = target.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = make_trl_trainer(
        "gkd" if gkd else "distillation",
        model,
        target.model,
        tokenizer,
        short_prompts(tokenizer) * 20,
        Interleaved(),
        max_new_tokens=MAX_NEW_TOKENS,
        output_dir=str(output),
        per_device_train_batch_size=BATCH,
        max_steps=1000,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=gradient_checkpointing,
    )
    trainer.train()
