"""What `bench --engine` asks of an engine: answers with their times, and what the engine itself counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specdistill.decoding import Generation, Sampling
from specdistill.serving.speculation import Speculation

OnTokens = Callable[[int], object]
"""Told how many tokens came in, for progress."""


@dataclass(frozen=True)
class Answered:
    """What became of one batch of prompts."""

    answers: list[Generation]
    """In order; `seconds` is the wall time of the whole batch."""
    speculation: Speculation | None
    """Over the batch; None of an engine without a draft."""


class Engine(Protocol):
    """One way of decoding, with or without a draft."""

    version: str
    """Name and version, as the engine tells them."""
    counters: str
    """Where `Answered.speculation` was read."""
    first_drafted: bool
    """Whether the prompt's own pass verifies a draft too."""

    def answer(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        max_new_tokens: int,
        seeds: list[int],
        on_tokens: OnTokens = lambda count: None,
    ) -> Answered:
        """Answers a batch at once.

        Raises:
            ServerError: Of a served engine: it is gone, refuses, or answers what it should not.
        """
        ...

    def close(self) -> None:
        """Stops what was started for it."""
        ...
