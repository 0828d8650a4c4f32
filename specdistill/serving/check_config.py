"""Settings of `specdistill check`. Imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Parameter

from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.checks import at_least
from specdistill.settings.parts import ESSENTIALS, Config, box


@dataclass(frozen=True, kw_only=True)
class PlannedServer:
    """How the server will be started."""

    max_model_len: int = 0
    """Positions that the server will be started with; 0 takes the target's own."""
    tensor_parallel: int = 1
    """GPUs that share each model in the server."""
    num_draft_tokens: int = 0
    """Draft tokens in the launch commands; 'specdistill bench' finds the best number. 0 takes the number that an
    EAGLE-3 head, or for vLLM a parallel draft, was trained for, and else 4."""

    def __post_init__(self) -> None:
        at_least(self, 1, "tensor_parallel")
        at_least(self, 0, "max_model_len", "num_draft_tokens")


@dataclass(frozen=True, kw_only=True)
class CheckConfig(Config):
    """Say which serving engines will load a pair, and whether the target holds a head of its own. Reads no weights."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """The model being served: hub id, checkpoint or adapter directory, or .gguf file."""
    draft: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """The draft: hub id, checkpoint or adapter directory, or .gguf file; also a head that was trained for the target
    (EAGLE-3, DFlash, an assistant). Without one, only the target's own head is looked for."""
    json: Annotated[str | None, Parameter(group=ESSENTIALS)] = None
    """Also write the verdicts to this file."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    server: Annotated[PlannedServer, box("Server")] = field(default_factory=PlannedServer)
