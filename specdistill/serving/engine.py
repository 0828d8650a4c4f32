"""The protocol of `bench --engine`: an engine answers, with times and its own counts of draft tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from specdistill.decoding import Generation, Sampling
from specdistill.serving.speculation import Speculation

OnTokens = Callable[[int], object]
"""Called with the number of tokens that came in, for progress."""


@dataclass(frozen=True)
class Answered:
    """Answers to one batch of prompts."""

    answers: list[Generation]
    """One per prompt, in order; `seconds` is the wall time of the batch."""
    speculation: Speculation | None
    """Counts over the batch; None for an engine without a draft."""


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

        Args:
            prompts: Token ids.
            sampling: Temperature and filters.
            max_new_tokens: Tokens per answer at most.
            seeds: One per prompt.
            on_tokens: Called as tokens come in.

        Raises:
            ServerError: A server is gone, refuses, or its answer is malformed.
        """
        ...

    def close(self) -> None:
        """Stops what was started for it."""
        ...
