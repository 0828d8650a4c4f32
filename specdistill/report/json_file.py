"""Results as JSON that every parser takes: numbers that don't exist are null, never NaN."""

from __future__ import annotations

import json
import math

from specdistill.evaluation.to_json import to_json


def json_text(result: object) -> str:
    """Indented JSON text.

    Args:
        result: A `Report`, `Plan` or another dataclass of results, or lists and mappings of them.
    """
    return json.dumps(_finite(to_json(result)), indent=2, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
