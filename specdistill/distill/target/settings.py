"""Settings of the target: where it is, how it lies in memory, and guidance. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from specdistill.distill.target.place import InMemory, Served, Stored, TargetPlace
from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least, needs
from specdistill.settings.guidance import GuidanceSettings


@dataclass(frozen=True, kw_only=True)
class TargetSettings(GuidanceSettings):
    """Where the target is, and what of it is distilled."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the target's weights; auto is bfloat16 on a GPU and float32 on a CPU. The draft's are float32."""
    target_memory: Literal["whole", "offloaded", "int8", "nf4"] = "whole"
    """How the target's layers lie in memory. offloaded: in the CPU's, each visits the GPU while it runs; exact, slow.
    int8, nf4: quantised by bitsandbytes (needs specdistill[quantised]); right if that is what you serve, else the draft
    learns a slightly different target."""
    soft_labels: str | None = None
    """Directory with answers and the target's distributions over them, written by 'specdistill annotate'. Only the
    target's configuration and tokenizer are read then, and distillspec stays on those answers. An EAGLE-3 head takes
    labels with states (annotate --features). For supervised-kd and distillspec."""
    target_server: str | None = None
    """URL of a vLLM or SGLang server of the target. It writes the answers and labels every token; only configuration
    and tokenizer of --target are read here. For seqkd, supervised-kd, gkd and distillspec at temperature 1 (or 0). A
    key is read from OPENAI_API_KEY."""
    server_model: str | None = None
    """Name under which --target-server serves the target; leave it out where it serves one model."""
    server_top_k: int = 20
    """Likeliest ids per token to ask --target-server for; the rest is one outcome of the loss. 20 is vLLM's own limit,
    which its --max-logprobs raises."""
    server_concurrency: int = 8
    """Requests to --target-server under way at a time."""
    server_patience: float = 600.0
    """Seconds to keep trying while --target-server is down or overloaded, before the run is saved and ends."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "server_top_k", "server_concurrency")
        at_least(self, 0, "server_patience")
        names = ("server_model", "server_top_k", "server_concurrency", "server_patience")
        needs(self, self.target_server is not None, "--target-server", *names)
        if self.soft_labels is not None and self.target_server is not None:
            raise ConfigError("--soft-labels and --target-server are two ways to do without the target; choose one")

    @property
    def place(self) -> TargetPlace:
        """Where the target is."""
        if self.soft_labels is not None:
            return Stored(Path(self.soft_labels))
        if self.target_server is not None:
            return Served(
                self.target_server,
                self.server_model,
                top_k=self.server_top_k,
                concurrency=self.server_concurrency,
                patience=self.server_patience,
            )
        return InMemory(self.target_memory)
