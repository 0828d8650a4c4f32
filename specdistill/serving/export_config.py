"""Settings of `specdistill export`. Imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.parts import ESSENTIALS, Config, box


@dataclass(frozen=True, kw_only=True)
class ExportedFiles:
    """Contents of the exported files."""

    type: Literal["auto", "float32", "float16", "bfloat16", "q8_0"] = "auto"
    """Number format of the weights. auto: as they are stored; float16 for gguf. q8_0 (8 bits and a scale per 32) is for
    gguf only."""
    merged_target: str | None = None
    """Also write the target with its adapter merged to this new directory, as a plain checkpoint that every server
    loads. Where --target is an adapter."""
    target_gguf: str | None = None
    """The file that llama.cpp serves, where --target is no .gguf file. For gguf. Its tokenizer is copied to the
    draft's, since llama.cpp compares the two."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Write a draft as one serving engine wants it: the target's vocabulary, tokenizer files and length."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """The model being served: hub id, checkpoint or adapter directory, or .gguf file."""
    draft: Annotated[str, Parameter(group=ESSENTIALS)]
    """The draft: hub id, checkpoint or adapter directory, or .gguf file; or an EAGLE-3 head."""
    format: Annotated[Literal["transformers", "vllm", "sglang", "gguf"], Parameter(group=ESSENTIALS)]
    """The engine; gguf is llama.cpp's. Only transformers takes a draft of another tokenizer than the target's, and it
    takes no head."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """A new directory; for gguf a new file that ends in .gguf."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    files: Annotated[ExportedFiles, box("Weights and tokenizer")] = field(default_factory=ExportedFiles)

    def __post_init__(self) -> None:
        super().__post_init__()
        gguf = self.format == "gguf"
        if gguf != self.output.endswith(".gguf"):
            raise ConfigError(
                f"--format {self.format} writes {'a .gguf file' if gguf else 'a directory'}; --output is {self.output}"
            )
        if self.files.type == "q8_0" and not gguf:
            raise ConfigError("--type q8_0 is for --format gguf")
        if gguf and not self.served_gguf.endswith(".gguf"):
            raise ConfigError(
                "--format gguf copies the tokenizer of the target's own .gguf: name it as --target or --target-gguf"
            )
        if self.files.merged_target and gguf:
            raise ConfigError(
                "--format gguf reads no weights of the target; write --merged-target with --format transformers"
            )
        if self.files.target_gguf and not gguf:
            raise ConfigError("--target-gguf is for --format gguf")

    @property
    def served_gguf(self) -> str:
        """The target's .gguf file."""
        return self.files.target_gguf or self.target
