"""Recognises the layers by which a model drafts for itself (MTP).

Told by names of tensors and by config.json, after vLLM 0.32 (`config/speculative.py`, `models/*_mtp.py`). Reads no
weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdistill.files.stored_tensors import StoredTensor, stored_tensors

_COUNTS = ("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_layers", "num_mtp_modules")
"""Settings that name the number of the head's layers."""
_SHIPPED = ("qwen3_next", "longcat_flash", "exaone_moe", "exaone4_5", "mimo_v2_flash", "step3p5")
"""Model types whose config.json may name no number: vLLM takes one layer for granted."""
_NAMED = re.compile(r"(?:^|\.)mtp(?:_\w+)?\.")
"""mtp.*, model.mtp.*, model.mtp_layers.* (MiMo, HY), model.mtp_block.* and its norms (ERNIE)."""
_LAYER = re.compile(r"^((?:model\.|language_model\.)*layers\.)(\d+)\.")
"""A layer of the decoder, not of a vision tower: DeepSeek, GLM, Pangu, Step, Bailing and HY number the head's layers
behind the model's own."""


@dataclass(frozen=True)
class OwnHead:
    """The head that a checkpoint holds, or should hold."""

    claim: str | None
    """Why there should be one; None where nothing says so."""
    tensors: dict[str, StoredTensor] | None
    """Its tensors; None where the weights are not here."""

    @property
    def is_lost(self) -> bool:
        """Whether there should be one, and is none."""
        return self.claim is not None and self.tensors == {}


def find(directory: Path, config: Mapping[str, Any], role: str) -> OwnHead:
    """Looks for a checkpoint's own head.

    Args:
        directory: The checkpoint.
        config: Its config.json, whole.
        role: Flag that names the checkpoint, for messages.

    Raises:
        ModelError: A header or the index can't be read.
    """
    stored = stored_tensors(directory, role)
    if stored is None:
        return OwnHead(claim(config), None)
    names = set(head_names(stored, config))
    return OwnHead(claim(config), {name: tensor for name, tensor in stored.items() if name in names})


def read_config(directory: Path) -> dict[str, Any]:
    """The whole config.json, which `checkpoint_files.check_directory` has checked."""
    return json.loads((directory / "config.json").read_text(encoding="utf-8-sig"))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of the text model, in a multimodal model's config.json."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def claim(config: Mapping[str, Any]) -> str | None:
    """Why a checkpoint should hold a head; None where neither its settings nor its type say so."""
    text = text_config(config)
    nested = config.get("mtp_config")
    for part in (text, config, nested if isinstance(nested, Mapping) else {}):
        for name in _COUNTS:
            if isinstance(part.get(name), int):
                return f"config.json says {name} {part[name]}" if part[name] > 0 else None
    kind = text.get("model_type")
    return f"{kind} models ship one" if kind in _SHIPPED else None


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the head in one level of a config.json."""
    return {name: value for name, value in config.items() if "mtp" in name or "nextn" in name}


def head_names(names: Iterable[str], config: Mapping[str, Any]) -> list[str]:
    """The tensors that belong to the head."""
    layers = text_config(config).get("num_hidden_layers")

    def is_extra(name: str) -> bool:
        layer = _LAYER.match(name)
        return layer is not None and isinstance(layers, int) and int(layer[2]) >= layers

    return [name for name in names if _NAMED.search(name) or is_extra(name)]


def decoder_root(names: Iterable[str]) -> str:
    """The words before `layers.` in names of the decoder's layers, such as `model.`; empty where there are none."""
    found = (_LAYER.match(name) for name in names)
    return next((layer[1].removesuffix("layers.") for layer in found if layer), "")
