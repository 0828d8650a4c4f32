"""The type of what a run measures."""

from __future__ import annotations

Measurements = dict[str, float | list[float | None] | None]
"""Numbers for the history by their names; None where there was nothing to measure."""
