"""The bench report's `recommendation`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

MORE_PROMPTS = "Time more prompts: raise --num-prompts and --latency-prompts."
AGAIN = "Measure again with nothing else running on this machine."
NO_TRAINING = "Do not train this draft: take one with cheaper steps, or hardware on which checking is cheap."

WAYS = {
    "draft": "the draft",
    "ngram": "n-gram",
    "ngram_transformers": "transformers' prompt lookup",
    "ngram_llama_cpp": "llama.cpp's ngram-simple",
    "suffix": "suffix decoding",
    "ngram+draft": "n-gram, else the draft,",
    "suffix+draft": "suffix decoding, else the draft,",
    "own_head": "the target's own head",
    "nothing": "the plain target",
}
"""Way of decoding, as the report names it -> in words, within a sentence."""


def way_name(name: str) -> str:
    """The way in words, at the end of a sentence or in a cell."""
    return WAYS.get(name, name).rstrip(",")


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The way to serve, and the next command."""

    serve: str
    """`draft`, a key of `baselines`, `nothing`, or `undecided` where too little was timed for an interval, or more
    was measured than the costs allow."""
    num_draft_tokens: int | None
    """Draft tokens per verification to serve it with; null for nothing."""
    why: str
    """The numbers behind it in a sentence or two."""
    next: str
    """One command."""
