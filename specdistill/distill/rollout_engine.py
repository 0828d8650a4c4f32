"""What an inference engine must do to write a model's answers in transformers' place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from torch import Tensor

from specdistill.decoding import Generation, Sampling
from specdistill.models import LanguageModel


class RolloutEngine(Protocol):
    """An inference engine that holds one model."""

    def write(
        self, prompts: list[list[int]], sampling: Sampling, max_new_tokens: int, seeds: list[int]
    ) -> list[Generation]:
        """An answer to each prompt, with its own seed."""
        ...

    def push(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Takes over new weights, named as transformers names them."""
        ...


class MakeEngine(Protocol):
    """Makes an engine of a model; `specdistill.serving.engines` has them."""

    def __call__(self, model: LanguageModel, *, max_length: int, memory: float) -> RolloutEngine: ...
