"""The report as JSON that every parser takes: numbers that don't exist are null, never NaN."""

from __future__ import annotations

import json
import math
from typing import Any


def json_report(report: dict[str, Any]) -> str:
    """Indented JSON text."""
    return json.dumps(_finite(report), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
