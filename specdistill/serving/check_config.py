"""Settings of `specdistill check`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """Say which serving engines will load a pair, why not, and how to launch them. Reads no weights."""

    target: str
    """The model being served: hub id or checkpoint directory."""
    draft: str
    """The draft: hub id or checkpoint directory."""
    max_model_len: int = 0
    """Positions that the server will be started with; 0 takes the target's own."""
    tensor_parallel: int = 1
    """GPUs that the server will share each model among."""
    num_draft_tokens: int = 4
    """Written into the launch commands; 'specdistill bench' finds the best number."""
    json: str | None = None
    """Also write the verdicts to this file."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tensor_parallel", "num_draft_tokens")
        at_least(self, 0, "max_model_len")
