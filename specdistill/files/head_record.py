"""Reads from a head's own files the target that it was made for, and the draft length that it was trained for.

A head of the usual layers names none, since engines count named ones differently: of any target it would read 2, L/2
and L - 3. So `config.json` names the number of the target's layers, under a key that no engine looks for. Heads of
older versions lack it, and `init_draft.json` or the recorded target itself tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from specdistill.errors import DataError
from specdistill.files import run_settings

if TYPE_CHECKING:
    from transformers import PretrainedConfig

LAYERS_KEY = "head_target_layers"
"""Key of config.json for the number of layers of the head's target; specdistill's own."""
TRAINED_KEY = "head_draft_tokens"
"""Key of config.json for the steps of a round that the head was trained for; specdistill's own."""
AUX_KEY = "eagle_aux_hidden_state_layer_ids"
"""Key of config.json for the target's layers that are read, in vLLM's counting. Left out for the usual ones: engines
count differently where it is there (SGLang adds 1), and agree where it is not."""
CUT_RECORD_FILE = "init_draft.json"
"""Record next to a draft that was cut out of its target and not trained since."""


@dataclass(frozen=True)
class HeadRecord:
    """Everything that is known of a head's making; every field is None where no file says it."""

    target: str | None = None
    """Name of its target, as it was given then: the model may have moved or been renamed since."""
    target_layers: int | None = None
    """Number of its target's layers."""
    read_layers: tuple[int, ...] | None = None
    """The layers that it reads."""
    said_by: str = ""
    """The file that says `target_layers`."""
    draft_tokens: int | None = None
    """Draft tokens per round that it was trained for."""

    @classmethod
    def read(cls, directory: Path | None, config: PretrainedConfig | SimpleNamespace | None = None) -> HeadRecord:
        """Reads a head's files, as far as they can be read; what is wrong with them others say.

        Args:
            directory: The head; None for a file with settings alone (.gguf).
            config: Its configuration, or the contents of its config.json as attributes; None reads that.
        """
        content = (_json(directory / "config.json") if directory else {}) if config is None else vars(config)
        cut = _json(directory / CUT_RECORD_FILE) if directory else {}
        target = _target(directory, cut) if directory else None
        nested = content.get("eagle_config")
        named = content.get(AUX_KEY) or (nested.get(AUX_KEY) if isinstance(nested, Mapping) else None)
        layers = _three(named or cut.get("layers"))
        count, said_by = _count(content.get(LAYERS_KEY)), "config.json"
        if count is None and layers is not None and not named and layers == _usual(layers[-1] + 3):
            count, said_by = layers[-1] + 3, CUT_RECORD_FILE
        if count is None and target is not None:
            count, said_by = _layers_of(Path(target)), f"the config.json of {target}"
        said_by = "" if count is None else said_by
        if layers is None and count is not None and count >= _FEWEST_LAYERS:
            layers = _usual(count)
        return cls(target, count, layers, said_by, _count(content.get(TRAINED_KEY)))

    def conflict(self, layers: object, target: str) -> str | None:
        """Why it is no head of a target, to be read after the head's name; None where nothing speaks against it.

        Args:
            layers: Number of that target's layers; anything else than a number is not compared.
            target: Names that target, such as `--target NAME`.
        """
        if self.target_layers is None or not isinstance(layers, int) or layers == self.target_layers:
            return None
        read = f"layers {', '.join(map(str, self.read_layers))} of {self.target_layers}" if self.read_layers else None
        known = f"which has {self.target_layers} layers"
        made_for = self.target or f"a target of {self.target_layers} layers"
        return (
            f"was made for {made_for}, {read or known} (by {self.said_by}); {target} has {layers}; a head works "
            "for one target only: name that one, or make another ('specdistill init-draft --kind eagle3')"
        )

    def remark(self, target: str) -> str | None:
        """Names its target where another name is given, to be read after the head's name; None for the same one.

        Args:
            target: Name of the target that it is used with.
        """
        if self.target is None or self.target == target or Path(self.target).resolve() == Path(target).resolve():
            return None
        return (
            f"was made for {self.target}, and the target is named {target} now: right if that is the same model, moved "
            "or renamed, or a fine-tune of it; a head of any other model is hardly ever accepted"
        )


_FEWEST_LAYERS = 7
"""Layers from which 2, L / 2 and L - 3 are three different ones."""


def _usual(layers: int) -> tuple[int, int, int]:
    return 2, layers // 2, layers - 3


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _target(directory: Path, cut: Mapping[str, Any]) -> str | None:
    settings = cut.get("config")
    if not isinstance(settings, Mapping):
        try:
            settings = run_settings.read(directory) if run_settings.exists(directory) else {}
        except DataError:
            settings = {}
    name = settings.get("target")
    return name if isinstance(name, str) and name else None


def _layers_of(target: Path) -> int | None:
    """Layers of a target whose directory is still here."""
    config = _json(target / "config.json")
    inner = config.get("text_config")
    return _count((inner if isinstance(inner, dict) else config).get("num_hidden_layers"))


def _three(layers: object) -> tuple[int, ...] | None:
    if not isinstance(layers, list | tuple) or len(layers) != 3 or not all(type(layer) is int for layer in layers):
        return None
    return tuple(layers)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
