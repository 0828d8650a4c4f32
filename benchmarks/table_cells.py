"""What every generated table needs: a committed result, and an estimate as a cell."""

from __future__ import annotations

import json
from typing import Any

from smollm2 import RESULTS


def load(name: str) -> Any:
    return json.loads((RESULTS / name).read_text())


def spread(value: dict[str, Any], sign: str = "", places: int = 3) -> str:
    mean, low, high = (f"{each:{sign}.{places}f}" for each in (value["mean"], *value["ci95"]))
    return f"{mean} [{low}, {high}]"


def between(values: list[float], places: int) -> str:
    return f"{min(values):.{places}f} to {max(values):.{places}f}"
