"""Settings of `specdistill init-draft`, in parts; imports nothing heavy, so that --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.settings.adapter import AdapterSettings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.checks import at_least, check_seed, needs
from specdistill.settings.machine import Machine
from specdistill.settings.parts import ESSENTIALS, MACHINE, Config, box


@dataclass(frozen=True, kw_only=True)
class LayerSettings:
    """How the layers are chosen."""

    choose: Literal["auto", "even", "ends", "greedy"] = "auto"
    """Layers to keep: evenly spaced, first and last ones, or added greedily by alpha on the calibration answers. auto
    trains all three for a few steps and keeps the one with the highest alpha."""
    probe_steps: int = 20
    """Steps of auto's short training of each candidate; 0 compares them untrained."""
    calibration_prompts: int = 32
    """Prompts to calibrate on, taken from --prompts."""
    calibration_tokens: int = 64
    """Tokens that the target writes for each, sampled at temperature 1."""
    seed: int = 0
    """Random seed of the calibration answers."""

    def __post_init__(self) -> None:
        at_least(self, 2, "calibration_prompts", "calibration_tokens")
        at_least(self, 0, "probe_steps")
        needs(self, self.choose == "auto", "--choose auto", "probe_steps")
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class InitDraftConfig(Config):
    """Cut a draft out of the target's own layers, for families without a small sibling."""

    target: Annotated[str, Parameter(group=ESSENTIALS)]
    """Model being served: hub id, checkpoint directory or .gguf file."""
    output: Annotated[str, Parameter(group=ESSENTIALS)]
    """Directory for the draft; must be new or empty."""
    layers: Annotated[int, Parameter(group=ESSENTIALS)]
    """Number of the target's layers to keep."""
    vocab_keep: Annotated[int, Parameter(group=ESSENTIALS)] = 0
    """Trim the output head to the N ids that the target uses most: in small drafts the head is most of a step's cost.
    0 keeps all. The saved weights keep the full vocabulary, for engines that demand it."""
    prompts: Annotated[str, Parameter(group=ESSENTIALS)] = "builtin:train"
    """Prompts whose answers calibrate the choice; same forms as in train-draft."""
    adapter: Annotated[AdapterSettings, box("Adapter")] = field(default_factory=AdapterSettings)
    chat: Annotated[ChatSettings, box("Chat template")] = field(default_factory=ChatSettings)
    choice: Annotated[LayerSettings, box("Choice of layers")] = field(default_factory=LayerSettings)
    machine: Annotated[Machine, box(MACHINE)] = field(default_factory=Machine)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "layers")
        at_least(self, 0, "vocab_keep")
