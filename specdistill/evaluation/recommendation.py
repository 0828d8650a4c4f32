"""The way of decoding that a bench recommends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recommendation:
    """The way of decoding that the measured numbers recommend."""

    serve: str
    """`draft`, `ngram`, `suffix`, `ngram+draft`, `own_head`, `nothing` or `undecided`."""
    num_draft_tokens: int | None
    """Draft length to serve it with; null where nothing is served."""
    why: str
    """The reason in one sentence."""
    next: str
    """The next step: a sentence or a command."""
