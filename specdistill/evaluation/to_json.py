"""Dataclasses of results -> values that JSON knows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from specdistill.evaluation.statistics import Estimate
from specdistill.settings.parts import Config


def to_json(value: Any) -> Any:
    """Dicts, lists, strings and numbers.

    Fields become keys in their order; one whose default is None is left out while it is None. Keys of mappings become
    strings, tuples lists, an `Estimate` {"mean": ..., "ci95": [low, high]}, and a configuration its flat settings.

    Args:
        value: A dataclass, or anything that its fields hold.
    """
    if isinstance(value, Estimate):
        return value.to_json()
    if isinstance(value, Config):
        return value.to_flat()
    if dataclasses.is_dataclass(value):
        pairs = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
        return {field.name: to_json(inner) for field, inner in pairs if inner is not None or field.default is not None}
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    return [to_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def finite(value: Any) -> Any:
    """The same with None in the place of NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
