"""The bench report's `recommendation`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The way to serve, and the next command."""

    serve: str
    """`draft`, a key of `baselines`, `nothing`, or `undecided` where too little was timed for an interval."""
    num_draft_tokens: int | None
    """Draft tokens per verification to serve it with; null for nothing."""
    why: str
    """The numbers behind it in a sentence or two."""
    next: str
    """One command."""
