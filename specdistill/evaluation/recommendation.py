"""The bench report's `recommendation`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

MORE_PROMPTS = "Time more prompts: raise --num-prompts and --latency-prompts."
NO_TRAINING = "Do not train this draft: take one with cheaper steps, or hardware on which checking is cheap."


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
