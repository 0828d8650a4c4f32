"""Settings of parallel drafts, which guess several tokens in one pass. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import a_share, at_least, check_parallel, needs


@dataclass(frozen=True, kw_only=True)
class ParallelLoss:
    """How the guesses of a parallel draft weigh in the loss."""

    tokens: int
    """Tokens that it guesses in one pass (K)."""
    decay: float | None = None
    """Weight of each depth's mean loss against the depth before; None counts every kept guess alike."""
    by_confidence: bool = False
    """Whether a guess weighs as much as the target's probability of the text before it, from the anchor on."""

    def depth_weights(self, rows: tuple[int, ...]) -> list[float]:
        """Weight of one guess of each depth; over all guesses of a step the weights add up to 1.

        Args:
            rows: Guesses of each depth in the step, from depth 1, the anchor's own row.
        """
        if self.decay is None:
            return [1 / max(1, sum(rows))] * len(rows)
        shares = [self.decay**ahead if count else 0.0 for ahead, count in enumerate(rows)]
        return [share / (max(1, count) * max(sum(shares), 1e-30)) for share, count in zip(shares, rows, strict=True)]


@dataclass(frozen=True, kw_only=True)
class ParallelSettings:
    """A draft that guesses several tokens in one pass."""

    parallel: int = 0
    """Train a parallel draft (PARD) that guesses this many tokens in one pass, behind mask tokens, where others take a
    pass for each; 8 to 12 are usual. It still learns to guess one token, so that it serves both ways. 0 trains an
    ordinary draft."""
    mask_token: int | None = None
    """Id of the mask token. Left out: the draft's own, else an id that texts never hold."""
    anchors: Literal["all", "rounds"] = "all"
    """Tokens behind which the masks are trained. all: every token of an answer. rounds: those where the draft's rounds
    on that text would begin, by its current guesses; on the draft's own answers that is where it will stand."""
    parallel_keep: float = 0.5
    """Share of the masks that each further depth keeps of the one before (0.7 as published). Lower is faster and leaves
    less of the far guesses; 1 keeps all."""
    parallel_keep_least: float = 0.1
    """Share of the masks that every depth keeps at least (0.2 as published)."""
    parallel_weights: float | None = None
    """Weight of each depth's mean loss against the depth before, in (0, 1]; 1 weighs all depths alike. Left out: every
    guess counts alike, so that a depth weighs as much as was kept of it."""
    parallel_confidence: bool = False
    """Weigh each guess by the target's probability of the text between it and its anchor, as a guess behind an unlikely
    token is seldom reached (PARD-2)."""

    def __post_init__(self) -> None:
        check_parallel(self)
        at_least(self, 0, *(["mask_token"] if self.mask_token is not None else []))
        a_share(self, "parallel_weights")
        others = ("mask_token", "anchors", "parallel_keep", "parallel_keep_least", "parallel_weights")
        needs(self, self.wanted, "--parallel", *others, "parallel_confidence")
        if self.parallel_keep < self.parallel_keep_least:
            raise ConfigError(
                f"--parallel-keep {self.parallel_keep:g} is below --parallel-keep-least {self.parallel_keep_least:g}, "
                "which every depth keeps anyway: raise the one or lower the other"
            )

    @property
    def wanted(self) -> bool:
        """Whether a parallel draft is trained."""
        return self.parallel > 0

    @property
    def loss(self) -> ParallelLoss | None:
        """How its guesses weigh; None for an ordinary draft."""
        if not self.wanted:
            return None
        return ParallelLoss(tokens=self.parallel, decay=self.parallel_weights, by_confidence=self.parallel_confidence)
