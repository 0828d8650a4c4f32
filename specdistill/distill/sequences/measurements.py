"""The type of what a run measures."""

from __future__ import annotations

Measurements = dict[str, float | str | list[float | None] | None]
"""Entries of the history by their names; None where there was nothing to measure."""
