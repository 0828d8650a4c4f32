"""Settings of `specdistill carry-head`. Imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from specdistill.errors import ConfigError
from specdistill.settings.parts import ESSENTIALS, Config


@dataclass(frozen=True, kw_only=True)
class CarryHeadConfig(Config):
    """Give a fine-tuned target the head back by which its base drafts for itself (MTP). The target stays as it is."""

    base: Annotated[str, Parameter(group=ESSENTIALS)]
    """The model that the target was fine-tuned from, with its head: hub id or checkpoint directory."""
    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """The fine-tuned model that lost the head: hub id or checkpoint directory."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """A new or empty directory, for the target's files and the head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, name in (("--base", self.base), ("--target", self.target)):
            if Path(name).resolve() == Path(self.output).resolve():
                raise ConfigError(f"{flag} and --output both name {name}; name a new directory as --output")
        if self.base == self.target:
            raise ConfigError(f"--base and --target both name {self.base}; name the model before fine-tuning as --base")
