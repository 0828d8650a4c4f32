"""Settings of `specdistill export`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.parts import Config


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Write a draft as one serving engine wants it: the target's vocabulary, tokenizer files and length."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file."""
    draft: str
    """The draft: hub id, checkpoint directory or .gguf file."""
    format: Literal["transformers", "vllm", "sglang", "gguf"]
    """The engine; gguf is llama.cpp's."""
    output: str
    """A new directory; of gguf a new file that ends in .gguf."""
    type: Literal["auto", "float32", "float16", "bfloat16", "q8_0"] = "auto"
    """Of the weights. auto: as they are stored; float16 for gguf. q8_0 (8 bits and a scale per 32) is gguf's only."""
    target_gguf: str | None = None
    """Of gguf, where --target is no .gguf file: the file that llama.cpp serves. Its tokenizer is copied to the draft's,
    since llama.cpp compares the two."""

    def __post_init__(self) -> None:
        gguf = self.format == "gguf"
        if gguf != self.output.endswith(".gguf"):
            raise ConfigError(
                f"--format {self.format} writes {'a .gguf file' if gguf else 'a directory'}; --output is {self.output}"
            )
        if self.type == "q8_0" and not gguf:
            raise ConfigError("--type q8_0 is for --format gguf")
        if gguf and not self.served_gguf.endswith(".gguf"):
            raise ConfigError(
                "--format gguf copies the tokenizer of the target's own .gguf: name it as --target or --target-gguf"
            )
        if self.target_gguf and not gguf:
            raise ConfigError("--target-gguf is for --format gguf")

    @property
    def served_gguf(self) -> str:
        """The target's .gguf file."""
        return self.target_gguf or self.target
