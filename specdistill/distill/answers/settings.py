"""Settings that generate, annotate and train-draft share: which engine writes, and on which cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least, needs
from specdistill.settings.scoring import CHOICES, LIKELIHOOD, check_name

RolloutEngineName = Literal["transformers", "vllm"]


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """The engine that writes answers."""

    rollout_engine: RolloutEngineName = "transformers"
    """Engine that writes the answers. vllm runs vLLM in this process; install it next to specdistill."""
    engine_memory: float = 0.9
    """Share of the GPU's memory that vLLM may take; for --rollout-engine vllm."""

    def __post_init__(self) -> None:
        if self.uses_engine and not 0 < self.engine_memory < 1:
            raise ConfigError(f"--engine-memory must be in (0, 1), got {self.engine_memory}")

    def refuse_idle(self) -> None:
        """Raises ConfigError for a setting of an engine where none is used."""
        needs(self, self.uses_engine, "--rollout-engine vllm", "engine_memory")

    @property
    def uses_engine(self) -> bool:
        """Whether another engine than transformers writes."""
        return self.rollout_engine != "transformers"


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The Ray cluster that writes shards."""

    ray: str | None = None
    """Write the shards on a Ray cluster (needs specdistill[ray]): its address, `auto`, or `local` for one started here.
    All its machines must see --output."""
    ray_workers: int = 1
    """Workers of --ray, each with the whole target; each takes a GPU where there are any."""

    def __post_init__(self) -> None:
        at_least(self, 1, "ray_workers")
        needs(self, self.ray is not None, "--ray", "ray_workers")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """The scorers that judge answers, as the settings of a command name them."""

    scorer: str
    """target-likelihood, which knows no right and wrong, or one that does."""
    score_threshold: float | None
    """Score of a right answer."""
    strict_scorer: str | None
    """Judges the right answers again."""

    def __post_init__(self) -> None:
        if self.strict_scorer == LIKELIHOOD:
            raise ConfigError(f"--strict-scorer must tell right from wrong: name {CHOICES}")
        check_name(self.scorer)
        if self.strict_scorer is not None:
            check_name(self.strict_scorer, "--strict-scorer", likelihood=False)
        if self.scorer != LIKELIHOOD:
            return
        for flag, value in (("--score-threshold", self.score_threshold), ("--strict-scorer", self.strict_scorer)):
            if value is not None:
                raise ConfigError(f"{flag} needs a --scorer that tells right from wrong: name {CHOICES}")


def check_text_block(text: str | None, block: int | None) -> None:
    """Refuses a block size without text, or below 1.

    Raises:
        ConfigError: Names the flag.
    """
    if block is not None and text is None:
        raise ConfigError("--text-block cuts raw text; name it with --text")
    if block is not None and block < 1:
        raise ConfigError(f"--text-block must be at least 1, got {block}")
