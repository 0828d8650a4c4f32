"""One table of engines: what each can do, and which module starts it. Imports no engine and nothing heavy."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class EngineKind:
    """One row of the table."""

    rules: tuple[str, ...]
    """Acceptance rules. It uses the first at temperature 0, and the second above it unless told otherwise."""
    place: Literal["decoder", "process", "started", "running"]
    """decoder: our own `SpeculativeDecoder`. process: a library in this process. started: two servers that bench starts
    and stops. running: two servers that run already."""
    launcher: str = ""
    """Module that starts a server: `check_installed(engine_args)`, `command(launch)` and `environment(launch)`."""
    checked: bool = False
    """Whether `check` has a verdict of this name that bench asks before it starts a server."""
    reads_gguf: bool = False
    """Whether it loads .gguf files only."""

    def launcher_module(self) -> ModuleType:
        """Imports the module that starts a server."""
        return importlib.import_module(self.launcher)


ENGINES = {
    "specdistill": EngineKind(rules=("greedy", "sampled", "argmax_draft", "block", "lenient"), place="decoder"),
    "transformers": EngineKind(rules=("greedy", "sampled"), place="process"),
    "vllm": EngineKind(
        rules=("greedy", "argmax_draft", "sampled"),
        place="started",
        launcher="specdistill.serving.engines.vllm_server",
        checked=True,
    ),
    "llama-cpp": EngineKind(
        rules=("greedy", "argmax_draft"),
        place="started",
        launcher="specdistill.serving.engines.llama_server",
        reads_gguf=True,
    ),
    "openai-server": EngineKind(rules=("greedy", "argmax_draft", "sampled"), place="running"),
}
"""Value of --engine -> what it is."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One server to start, with or without a draft."""

    target: str
    """Directory, hub id or .gguf file."""
    draft: str | None
    """The same for the draft; None serves the target alone."""
    port: int
    """Port of the loopback address."""
    num_draft_tokens: int
    """Draft tokens per verification; 0 without a draft."""
    rule: str
    """Acceptance rule that the server is asked for."""
    context: int
    """Positions of one request: the longest prompt with its answer."""
    batch_size: int
    """Requests at a time."""
    device: str
    """Device, as torch names it."""
    dtype: str
    """Number format of the weights, as torch names it."""
    threads: int
    """CPU threads; 0 keeps the engine's default."""
    engine_args: str
    """The user's own flags, which win over ours."""
