"""Drafting for nothing: a run of tokens is copied from where the last ones stood before in the same text.

Each engine looks in its own way. The three here propose what the engine's own drafter would, token for token; they are
compared with it in tests and in `benchmarks/decoding/lookup_parity.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol


class Lookup(Protocol):
    """One growing text, out of which runs of tokens are copied."""

    def read(self, token_ids: Sequence[int]) -> None:
        """Takes in the tokens that the text has grown by; the first ones are the prompt."""
        ...

    def copy(self, most: int) -> list[int]:
        """Proposes up to `most` tokens that may come next; none where nothing fits."""
        ...


NewLookup = Callable[[], Lookup]
"""Begins a text."""


class VllmNgram:
    """vLLM's method `ngram`: the longest run within two sizes that stood before, where it stood first.

    Args:
        smallest, largest: Tokens that must repeat (`prompt_lookup_min` and `prompt_lookup_max`).

    Source: `vllm/v1/spec_decode/ngram_proposer.py` (0.32).
    """

    def __init__(self, smallest: int, largest: int) -> None:
        self._sizes = range(largest, smallest - 1, -1)
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Run -> index of the token after its first occurrence that has one."""

    def read(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            # Runs that end at the last token count from now on, when something follows them.
            for run in self._last_runs():
                self._after.setdefault(run, len(self._text))
            self._text.append(token)

    def copy(self, most: int) -> list[int]:
        places = (self._after.get(run) for run in self._last_runs())
        start = next((place for place in places if place is not None), None)
        return [] if start is None else self._text[start : start + most]

    def _last_runs(self) -> Iterator[tuple[int, ...]]:
        """The last tokens of the text, the longest run first."""
        return (tuple(self._text[-size:]) for size in self._sizes if size <= len(self._text))


class TransformersNgram:
    """transformers' `prompt_lookup_num_tokens`: as vLLM's from one token on, but nothing beyond the end of an answer.

    Args:
        largest: Most tokens that must repeat (`max_matching_ngram_size`).
        stop_ids: Ends of answers. A run is cut before the first of them, even where nothing is left of it then.

    Source: `PromptLookupCandidateGenerator` of `transformers/generation/candidate_generator.py` (5.23).
    """

    def __init__(self, largest: int, stop_ids: frozenset[int]) -> None:
        self._lookup, self._stop_ids = VllmNgram(1, largest), stop_ids

    def read(self, token_ids: Sequence[int]) -> None:
        self._lookup.read(token_ids)

    def copy(self, most: int) -> list[int]:
        run = self._lookup.copy(most)
        end = next((place for place, token in enumerate(run) if token in self._stop_ids), len(run))
        return run[:end]


class LlamaCppNgram:
    """llama.cpp's `--spec-type ngram-simple`: runs of one size, where they stood last, and long copies only.

    Args:
        size: Tokens that must repeat (`--spec-ngram-simple-size-n`).
        longest: Most tokens to copy (`--spec-ngram-simple-size-m`). Shorter copies than `size` are not made, nor any
            while the text is shorter than both together.

    Source: `common_ngram_simple_draft` of `common/ngram-map.cpp`.
    """

    def __init__(self, size: int, longest: int) -> None:
        self._size, self._longest = size, longest
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def read(self, token_ids: Sequence[int]) -> None:
        for token in token_ids:
            self._text.append(token)
            # It searches the text without its last token, and not at the very beginning.
            place = len(self._text) - 2
            if place > self._size:
                self._after[tuple(self._text[place - self._size : place])] = place

    def copy(self, most: int) -> list[int]:
        searched = len(self._text) - 1
        start = self._after.get(tuple(self._text[-self._size :]))
        if start is None or searched <= self._size + self._longest + 1:
            return []
        length = min(self._longest, searched - start)
        return [] if length < self._size else self._text[start : start + min(length, most)]
