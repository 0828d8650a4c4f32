"""Settings of `specdistill init-draft`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config


@dataclass(frozen=True, kw_only=True)
class InitDraftConfig(Config):
    """Cut a draft out of the target's own layers, for families without a small sibling."""

    target: str
    """The model being served: hub id, checkpoint directory or .gguf file."""
    output: str
    """Directory for the draft; must be new or empty."""
    layers: int
    """How many of the target's layers to keep."""
    choose: Literal["auto", "even", "ends", "greedy"] = "auto"
    """Which layers: evenly spaced, first and last ones, or added greedily by alpha on the calibration answers; auto
    trains all three for a few steps and keeps the one with the highest alpha."""
    probe_steps: int = 20
    """Steps of auto's short training of each candidate; 0 compares them untrained."""
    vocab_keep: int = 0
    """Trim the output head to the N ids that the target uses most (for small drafts the head is most of a step's cost);
    0 keeps all. The saved weights keep the full vocabulary, for engines that demand it."""
    prompts: str = "builtin:train"
    """Prompts whose answers calibrate the choice; same forms as in train-draft."""
    calibration_prompts: int = 32
    """How many of them."""
    calibration_tokens: int = 64
    """Tokens that the target writes for each, sampled at temperature 1."""
    seed: int = 0
    """Of the calibration answers."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        at_least(self, 1, "layers")
        at_least(self, 2, "calibration_prompts")
        at_least(self, 2, "calibration_tokens")
        at_least(self, 0, "vocab_keep", "threads", "probe_steps")
