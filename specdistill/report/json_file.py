"""Results as JSON that every parser takes: numbers that don't exist are null, never NaN."""

from __future__ import annotations

import json

from specdistill.evaluation.to_json import finite, to_json


def json_text(result: object) -> str:
    """Indented JSON text.

    Args:
        result: A `Report`, `Plan` or another dataclass of results, or lists and mappings of them.
    """
    return json.dumps(finite(to_json(result)), indent=2, allow_nan=False) + "\n"
