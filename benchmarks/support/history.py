"""Reads the history of a `train-draft` run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_history(run: Path) -> list[dict[str, Any]]:
    """The entries of history.jsonl in the run's directory, one per evaluation."""
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
