"""The answer of one engine's gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from specdistill.evaluation.to_json import to_json


@dataclass(frozen=True)
class Verdict:
    """Whether one engine will load the pair, and how it will use it."""

    engine: str
    """Name of the engine."""
    rule: str
    """How it accepts draft tokens above temperature 0; at 0 all of them compare argmaxes."""
    command: str
    """Command line or call that starts it with the pair."""
    refusals: list[str] = field(default_factory=list)
    """Reasons why it will not load the pair; empty where it will."""
    warnings: list[str] = field(default_factory=list)
    """Costs in acceptance or memory although it loads."""
    first: list[str] = field(default_factory=list)
    """Commands to run before, in order: they write whole checkpoints where the pair holds adapters."""
    alternative: str | None = None
    """Another command that serves the pair."""

    @property
    def loads(self) -> bool:
        """Whether the engine loads the pair."""
        return not self.refusals

    def to_json(self) -> dict[str, Any]:
        """Every field and `loads`, for --json."""
        return {"loads": self.loads, **to_json(self)}
