"""How fast this machine trains a draft: one optimiser step on a few of the answers, as `train-draft` takes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from specdistill.data.batch import Example
from specdistill.data.mask_tokens import drop_masks, every_mask
from specdistill.decoding.clock import wait_for
from specdistill.distill.methods import METHODS
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.head_states import states_for
from specdistill.distill.training.head_settings import HeadSettings
from specdistill.distill.training.loss_settings import LossSettings, Objective
from specdistill.distill.training.parallel_settings import ParallelSettings
from specdistill.distill.training.settings import OptimiserSettings
from specdistill.distill.training.step import StepRunner
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.head_draft import HeadModel
from specdistill.settings.sampling import Sampling

ANSWERS = OptimiserSettings().batch_size
"""Answers of the step that is timed."""
_METHOD = "distillspec"


@dataclass(frozen=True)
class StepSpeeds:
    """Answer tokens per second."""

    reads: float
    """Speed of the target, which reads the text with its prompts."""
    trains: float
    """Speed of the draft, on text that was read."""


def step_speeds(target: LanguageModel, draft: LanguageModel, answers: Sequence[Example], unroll: int) -> StepSpeeds:
    """Times a step. The draft is trained by it, in float32, so nothing else is measured with it afterwards.

    Args:
        target: Frozen.
        draft: Any kind.
        answers: Text to learn from; the first few are taken.
        unroll: Steps of a head's rounds.
    """
    chosen = [_with_masks(one, draft) for one in answers[:ANSWERS]]
    torch.nn.Module.to(draft.model, torch.float32)
    draft.model.requires_grad_(True).train()
    draft.weights_changed()
    pair = ModelPair(target, draft)
    states = states_for(pair, chosen, None, lockstep=False)
    reading = _seconds(lambda: states.hidden_states(chosen), target)
    runner = StepRunner(pair, states, _objective(draft, unroll), OptimiserSettings(batch_size=len(chosen)), ALONE)
    # The first step makes the optimiser's state.
    runner.run(chosen)
    training = _seconds(lambda: runner.run(chosen), target)
    tokens = sum(len(one.answer_ids) for one in chosen)
    return StepSpeeds(tokens / reading, tokens / training)


def _with_masks(answer: Example, draft: LanguageModel) -> Example:
    if draft.parallel is None or draft.parallel.trained_tokens is None:
        return answer
    usual, every = ParallelSettings(), every_mask(len(answer.answer_ids), draft.parallel.trained_tokens)
    return replace(answer, masks=drop_masks(every, usual.parallel_keep, usual.parallel_keep_least, answer.prompt_id))


def _objective(draft: LanguageModel, unroll: int) -> Objective:
    objective = LossSettings().objective(METHODS[_METHOD], Sampling())
    if isinstance(draft, HeadModel):
        return replace(objective, head=HeadSettings(unroll=unroll).loss)
    if draft.parallel is None or draft.parallel.trained_tokens is None:
        return objective
    return replace(objective, parallel=ParallelSettings(parallel=draft.parallel.trained_tokens).loss)


def _seconds(work: Callable[[], object], target: LanguageModel) -> float:
    wait_for(target.device)
    start = time.perf_counter()
    work()
    wait_for(target.device)
    return time.perf_counter() - start
