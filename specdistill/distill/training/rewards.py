"""Rewards of a step's answers. All ranks' answers make each one's baseline, so that two ranks train as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specdistill.data.batch import Example, Provenance
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.training.loss import leave_one_out_advantages

Reward = Callable[[Example], float]
"""Judges an answer that the draft wrote; more is better."""


@dataclass(frozen=True)
class StepRewards:
    """Rewards of one optimiser step."""

    mean: float
    """Mean over the answers of all ranks."""
    advantages: list[float]
    """Each reward of this rank's answers, in order, minus the mean of the step's others."""


def judge_step(reward: Reward | None, examples: Sequence[Example], ranks: Ranks) -> StepRewards | None:
    """Judges the answers that the draft wrote. All ranks call it together.

    Args:
        reward: None without --reward.
        examples: This rank's share of the batch; it may be empty.
        ranks: The processes that train together.

    Returns:
        None without a reward, or where somebody else wrote.
    """
    if reward is None:
        return None
    own = all(set(example.provenance) <= {int(Provenance.DRAFT)} for example in examples)
    rewards = [reward(example) for example in examples] if own else []
    shares = ranks.gather([rewards])
    everyones = [value for share in shares for value in share]
    if not everyones:
        return None
    before = sum(len(share) for share in shares[: ranks.rank])
    advantages = leave_one_out_advantages(everyones)[before : before + len(rewards)]
    return StepRewards(sum(everyones) / len(everyones), advantages)
