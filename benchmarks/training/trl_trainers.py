"""TRL's two trainers over given models, one step at a time. Imports TRL, which takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from datasets import Dataset
from transformers import TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer.distillation_config import DistillationConfig
from trl.trainer.distillation_trainer import DistillationTrainer

from specdistill.data.prompts import Prompt

Kind = Literal["gkd", "distillation"]


class StepClock(Protocol):
    """Told when a step begins and ends, and how many tokens its loss counted."""

    tokens: int

    def begin(self) -> None:
        """Called before each step."""
        ...

    def end(self) -> None:
        """Called after each step."""
        ...


class _OnSteps(TrainerCallback):
    def __init__(self, clock: StepClock) -> None:
        self._clock = clock

    def on_step_begin(self, *arguments, **named):
        self._clock.begin()

    def on_step_end(self, *arguments, **named):
        self._clock.end()


def _counting(trainer_class: type, clock: StepClock) -> type:
    """The trainer class, counting the tokens of its loss."""

    class Counting(trainer_class):
        def compute_loss(self, model, inputs, *arguments, **named):
            if "completion_mask" in inputs:
                tokens = inputs["completion_mask"].sum()
            else:
                tokens = (inputs["labels"] != -100).sum()
            clock.tokens += int(tokens)
            return super().compute_loss(model, inputs, *arguments, **named)

    return Counting


def make_trl_trainer(
    kind: Kind,
    model: Any,
    teacher: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    clock: StepClock,
    *,
    max_new_tokens: int,
    max_length: int = 512,
    **settings: Any,
) -> Any:
    """A trainer of on-policy steps by the generalised Jensen-Shannon divergence, whose `train` runs them.

    Args:
        kind: GKDTrainer or DistillationTrainer.
        model, teacher: transformers' models.
        tokenizer: Has a chat template.
        prompts: What is asked.
        clock: Told of each step.
        max_new_tokens: Limit of each answer.
        max_length: Limit of a prompt with its answer, which GKDTrainer wants.
        settings: Added to the trainer's arguments.
    """
    shared = {"report_to": "none", "temperature": 1.0, "beta": 0.5, "learning_rate": 3e-4, "save_strategy": "no"}
    shared |= {"disable_tqdm": True, "logging_steps": 10**6} | settings
    if kind == "gkd":
        answer = {"role": "assistant", "content": "Yes."}
        rows = [{"messages": [*prompt.messages, answer]} for prompt in prompts]
        config = GKDConfig(**shared, lmbda=1.0, max_new_tokens=max_new_tokens, max_length=max_length)
    else:
        rows = [{"prompt": list(prompt.messages)} for prompt in prompts]
        config = DistillationConfig(**shared, max_completion_length=max_new_tokens)
    trainer_class = _counting(GKDTrainer if kind == "gkd" else DistillationTrainer, clock)
    return trainer_class(
        model=model,
        teacher_model=teacher,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[_OnSteps(clock)],
    )
