"""Sorts what a target wrote as users' words: which texts are prompts, of which half, and why others are dropped."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from specdistill.settings.self_prompts import Half

Reason = Literal["empty", "truncated", "duplicate", "marked"]
REASONS: dict[Reason, str] = {
    "empty": "empty",
    "truncated": "cut off at the limit",
    "duplicate": "the same as an earlier one",
    "marked": "with special tokens inside",
}
"""Why a draw is no prompt, in words."""
_HELD_OUT = 5
"""One text of so many is held out."""


@dataclass(frozen=True)
class Draw:
    """One continuation of the opening."""

    number: int
    """Its place among all draws, which its seed is made from."""
    text: str
    ended: bool
    """Whether the turn's end came before the limit."""


@dataclass
class SortedDraws:
    """Draws so far, sorted."""

    prompts: dict[Half, list[Draw]] = field(default_factory=lambda: {"train": [], "heldout": []})
    dropped: Counter[Reason] = field(default_factory=Counter)
    draws: int = 0
    _seen: set[str] = field(default_factory=set)

    def add(self, draw: Draw, markers: Collection[str], *, raw: bool) -> None:
        """Sorts one more draw.

        Args:
            draw: The next one in order.
            markers: Special tokens; a text that holds one is no user's text.
            raw: Whether a text that reached the limit is a prompt up to its last whole word.
        """
        self.draws += 1
        text = draw.text if draw.ended or not raw else _whole_words(draw.text)
        text = text.strip()
        key = " ".join(text.casefold().split())
        reason: Reason | None = None
        if not draw.ended and not raw:
            reason = "truncated"
        elif not text:
            reason = "empty"
        elif any(marker in text for marker in markers) or "\ufffd" in text:
            reason = "marked"
        elif key in self._seen:
            reason = "duplicate"
        if reason is not None:
            self.dropped[reason] += 1
            return
        self._seen.add(key)
        self.prompts[half_of(key)].append(Draw(draw.number, text, draw.ended))

    def add_until(self, draws: Iterable[Draw], half: Half, count: int, markers: Collection[str], *, raw: bool) -> bool:
        """Sorts draws until one half has `count` prompts; whether it has.

        What is counted then depends on `count` alone, not on how many more draws there are.
        """
        for draw in draws:
            if len(self.prompts[half]) == count:
                break
            self.add(draw, markers, raw=raw)
        return len(self.prompts[half]) == count

    def counts(self) -> dict[str, int]:
        """Draws, prompts of each half and dropped ones by reason."""
        return {
            "draws": self.draws,
            "train": len(self.prompts["train"]),
            "heldout": len(self.prompts["heldout"]),
            **{reason: self.dropped[reason] for reason in REASONS},
        }


def half_of(key: str) -> Half:
    """Side of a text, by its content: it is the same in every command, for every N, seed and model."""
    digest = hashlib.sha256(key.encode()).digest()
    return "heldout" if int.from_bytes(digest[:8]) % _HELD_OUT == 0 else "train"


def _whole_words(text: str) -> str:
    words = text.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 else text
