"""Classifier-free guidance of the target, as settings. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least


@dataclass(frozen=True, kw_only=True)
class GuidanceSettings:
    """Guidance of the target by a negative prompt."""

    guidance: float = 0.0
    """Weight w of classifier-free guidance: the target says (1 + w) log p(y|x) - w log p(y|negative)."""
    negative_prompt: str | None = None
    """User's turn that the target is pushed away from; goes with --guidance."""

    def __post_init__(self) -> None:
        at_least(self, 0, "guidance")
        if bool(self.guidance) != (self.negative_prompt is not None):
            raise ConfigError("--guidance and --negative-prompt go together")
