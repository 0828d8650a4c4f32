"""A contestant of `training_step.py`: one of TRL's trainers, which waits for its turn before every step."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from benchmarks.support.interleaved import Interleaved
from benchmarks.support.paths import target_file
from benchmarks.training.step_trainer import BATCH, MAX_NEW_TOKENS, short_prompts
from specdistill.models import load_model


class WaitForTurn(TrainerCallback):
    """Holds the trainer back until it is its turn."""

    def __init__(self, turns: Interleaved) -> None:
        self._turns = turns

    def on_step_begin(self, *arguments, **named):
        self._turns.begin()

    def on_step_end(self, *arguments, **named):
        self._turns.end()


def counting(trainer_class: type, turns: Interleaved) -> type:
    """The trainer class, counting the tokens of its loss."""

    class Counting(trainer_class):
        def compute_loss(self, model, inputs, *arguments, **named):
            if "completion_mask" in inputs:
                tokens = inputs["completion_mask"].sum()
            else:
                tokens = (inputs["labels"] != -100).sum()
            turns.tokens += int(tokens)
            return super().compute_loss(model, inputs, *arguments, **named)

    return Counting


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
    shared = {
        "output_dir": str(output),
        "per_device_train_batch_size": BATCH,
        "max_steps": 1000,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": gradient_checkpointing,
        "report_to": "none",
        "temperature": 1.0,
        "beta": 0.5,
        "learning_rate": 3e-4,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 10**6,
    }
    prompts = short_prompts(tokenizer) * 20
    if gkd:
        answer = {"role": "assistant", "content": "Yes."}
        rows = [{"messages": [*prompt.messages, answer]} for prompt in prompts]
        config = GKDConfig(**shared, lmbda=1.0, max_new_tokens=MAX_NEW_TOKENS, max_length=512)
        trainer_class = GKDTrainer
    else:
        rows = [{"prompt": list(prompt.messages)} for prompt in prompts]
        config = DistillationConfig(**shared, max_completion_length=MAX_NEW_TOKENS)
        trainer_class = DistillationTrainer
    turns = Interleaved()
    trainer = counting(trainer_class, turns)(
        model=model,
        teacher_model=target.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[WaitForTurn(turns)],
    )
    trainer.train()
