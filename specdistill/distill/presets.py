"""Presets of train-draft: settings for a purpose. One table makes help, documentation and the run's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from specdistill.distill.methods import METHOD_SETTINGS, METHODS
from specdistill.errors import ConfigError
from specdistill.settings.checks import flag, within_one

PresetName = Literal["none", "adapt"]


@dataclass(frozen=True)
class Preset:
    """Settings that a run takes unless it is given others."""

    purpose: str
    """Who it is for, for people."""
    settings: Mapping[str, int | float]
    """Flat name of each setting -> its value."""


PRESETS: Mapping[str, Preset] = {
    "adapt": Preset(
        "for a trained draft whose target was fine-tuned: few steps on the target's own answers, and none where the "
        "draft has lost nothing",
        {
            # The learning rate stays automatic: it is low for a draft that is no fresh cut.
            "steps": 100,
            "eval_every": 20,
            "patience": 2,
            "rollouts_per_prompt": 2,
            # On a fine-tuned target the draft's own answers brought less and cost more (docs/study.md).
            "target_fraction": 1.0,
            "enough_alpha": 0.95,
            "tolerated_drop": 0.02,
        },
    ),
}


def preset_settings(name: str, method: str) -> dict[str, int | float]:
    """The preset's settings that a method takes; empty where there is no such preset.

    Args:
        name: --preset.
        method: --method.
    """
    if name not in PRESETS:
        return {}
    taken = METHODS[method].settings if method in METHODS else METHOD_SETTINGS
    return {
        setting: value
        for setting, value in PRESETS[name].settings.items()
        if setting not in METHOD_SETTINGS or setting in taken
    }


def as_flags(settings: Mapping[str, int | float]) -> str:
    """`--steps 100 --patience 2`."""
    return " ".join(f"{flag(name)} {value:g}" for name, value in settings.items())


def preset_help() -> str:
    """Help of --preset: purpose and settings of every preset."""
    lines = (f"{name}: {preset.purpose}. It sets {as_flags(preset.settings)}." for name, preset in PRESETS.items())
    return f"Settings for a purpose; those that you set yourself win. {' '.join(lines)}"


def presets_table() -> str:
    """The table of docs/methods.md, in Markdown."""
    rows = [f"| `{name}` | {preset.purpose} | `{as_flags(preset.settings)}` |" for name, preset in PRESETS.items()]
    return "\n".join(["| preset | is | sets |", "|---|---|---|", *rows])


@dataclass(frozen=True, kw_only=True)
class PresetSettings:
    """The preset, and when the start is good enough to train nothing."""

    preset: Annotated[PresetName, Parameter(help=preset_help())] = "none"
    """Row of `PRESETS`. In Python `TrainConfig.flat` fills its settings in; parts that you build yourself are taken as
    they are."""
    enough_alpha: float = 0.0
    """Train nothing where the draft's held-out alpha under --rule is at least this before training, with its whole 95 %
    interval. 0 always trains."""
    tolerated_drop: float = 0.0
    """Train nothing where the draft's held-out alpha is at most this below what its own directory says of the target
    that it was made for, on the same held-out prompts with the same sampling. 0 always trains."""

    def __post_init__(self) -> None:
        if self.preset != "none" and self.preset not in PRESETS:
            raise ConfigError(f"unknown --preset {self.preset!r}; choose one of none, {', '.join(PRESETS)}")
        within_one(self, "enough_alpha", "tolerated_drop")

    @property
    def judges_start(self) -> bool:
        """Whether a good start ends the run."""
        return bool(self.enough_alpha or self.tolerated_drop)

    def announce(self, method: str, settings: Mapping[str, object], say: Callable[[str], None]) -> None:
        """Says which settings of a run are the preset's, and which were set otherwise; nothing without a preset.

        Args:
            method: --method.
            settings: The run's settings by their flat names.
            say: Where the line goes.
        """
        values = preset_settings(self.preset, method)
        if not values:
            return
        kept = {name: value for name, value in values.items() if settings[name] == value}
        own = " ".join(f"{flag(name)} {settings[name]}" for name in values if name not in kept)
        say(f"preset {self.preset}: {as_flags(kept)}" + (f"; set by you: {own}" if own else ""))
