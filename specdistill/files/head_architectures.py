"""Recognises checkpoints that are a head for another model, by config.json alone, after vLLM 0.32."""

from __future__ import annotations

import re

_DRAFTS = (
    ("eagle3", re.compile(r"Eagle3|P[Ee]agle")),
    ("eagle", re.compile(r"^Eagle(?!2_5_VL)")),
    ("dflash", re.compile(r"DFlash|MuseGlimmerAssistant")),
    ("dspark", re.compile(r"DSpark")),
)
"""Kind -> name of the architecture of a checkpoint that is a head alone; the first that fits counts."""


def draft_kind(architectures: object, model_type: object) -> str | None:
    """Kind of a checkpoint that is a head alone: eagle3, eagle, dflash, dspark or assistant; None for a model.

    Args:
        architectures, model_type: From its config.json.
    """
    named = [str(name) for name in architectures] if isinstance(architectures, list) else []
    for kind, pattern in _DRAFTS:
        if any(pattern.search(name) for name in named):
            return kind
    return "assistant" if str(model_type).endswith("_assistant") else None
