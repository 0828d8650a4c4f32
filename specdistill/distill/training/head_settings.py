"""Settings of heads, which read the target's hidden states. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specdistill.distill.training.parallel_settings import ParallelLoss
from specdistill.settings.checks import a_share, at_least, needs


@dataclass(frozen=True, kw_only=True)
class UnrolledLoss:
    """How the steps of a head's rounds weigh in the loss."""

    steps: int
    """Steps of a round."""
    decay: float
    """Weight of each step's mean loss against the step before."""

    def rows(self, answer_lengths: Sequence[int]) -> list[int]:
        """Guesses of each step. The target writes an answer's first token itself, and step k guesses k tokens on."""
        return [sum(max(0, length - 1 - step) for length in answer_lengths) for step in range(self.steps)]

    def step_weights(self, rows: tuple[int, ...]) -> list[float]:
        """Weight of one guess of each step; over all guesses of an optimiser step the weights add up to 1."""
        return ParallelLoss(tokens=self.steps, decay=self.decay).depth_weights(rows)


@dataclass(frozen=True, kw_only=True)
class HeadSettings:
    """A draft that is an EAGLE-3 head of the target (`init-draft --kind eagle3`)."""

    unroll: int = 3
    """Steps of a round that a head is trained for: in step 1 it reads the target's features, in later ones its own, as
    it does when it drafts (training-time test). Take the draft length that you will serve; each step costs about as
    much as the first. It is also the length at which tokens per call are watched."""
    unroll_weights: float = 0.8
    """Weight of each step's mean loss against the step before, in (0, 1]: a later step is reached less often."""

    def __post_init__(self) -> None:
        at_least(self, 1, "unroll")
        a_share(self, "unroll_weights")

    def refuse_idle(self) -> None:
        """Refuses settings of heads for another draft."""
        needs(self, False, "a --draft that is an EAGLE-3 head (init-draft --kind eagle3)", "unroll", "unroll_weights")

    @property
    def loss(self) -> UnrolledLoss:
        """How the steps weigh."""
        return UnrolledLoss(steps=self.unroll, decay=self.unroll_weights)
