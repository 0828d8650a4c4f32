"""Rough kinds of prompts, by keywords: enough to say what a set of prompts is about, and no more."""

from __future__ import annotations

import re
from collections.abc import Sequence

_KEYWORDS = {
    "code": r"\b(code|python|java|javascript|function|sql|html|css|algorithm|program\w*|script|api|debug\w*|regex)\b"
    r"|```",
    "maths": r"\b(calculate|equation|solve|triangle|probability|integral|derivative|algebra|how many|percent\w*|prime"
    r"|square root|sum of)\b|\d\s*[-+*/]\s*\d",
    "writing": r"\b(write|rewrite|story|poem|essay|email|letter|blog|paragraph|summar\w+|edit|headline|speech"
    r"|lyrics)\b",
    "advice": r"\b(should i|tips|advice|help me|suggest\w*|recommend\w*|plan\w*|how can i|how do i|ideas|struggling)\b",
    "explanation": r"\b(explain|explanation|what is|what are|what's|why|how does|how do|describe|difference|tell me|who"
    r"|when|where|history|information|overview)\b",
}
"""Kind -> words of it; the first kind that fits counts."""
KINDS = (*_KEYWORDS, "other")


def kind_of(text: str) -> str:
    """Kind of one prompt."""
    for kind, words in _KEYWORDS.items():
        if re.search(words, text, re.IGNORECASE):
            return kind
    return "other"


def shares(texts: Sequence[str]) -> dict[str, float]:
    """Share of each kind among some prompts."""
    kinds = [kind_of(text) for text in texts]
    return {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
