"""Inference engines that write a model's answers in transformers' place: what they must do, and how one is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from specdistill.decoding import Generation, Sampling
from specdistill.errors import ConfigError
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


class EngineSettings(Protocol):
    """What the settings of train-draft and generate have in common here."""

    @property
    def rollout_engine(self) -> str: ...
    @property
    def engine_memory(self) -> float: ...
    @property
    def max_new_tokens(self) -> int: ...


def check_make_engine(config: EngineSettings, make_engine: MakeEngine | None) -> None:
    """Needs no model.

    Raises:
        ConfigError: The settings name an engine, and the caller passed none.
    """
    if config.rollout_engine != "transformers" and make_engine is None:
        raise ConfigError(f"--rollout-engine {config.rollout_engine}: pass make_engine (the command line does)")


def build_engine(
    config: EngineSettings, make_engine: MakeEngine | None, model: LanguageModel, encoded: Sequence[list[int]]
) -> RolloutEngine | None:
    """The engine with the model, long enough for the prompts and their answers; None where transformers writes."""
    if config.rollout_engine == "transformers" or make_engine is None:
        return None
    return make_engine(model, max_length=max(map(len, encoded)) + config.max_new_tokens, memory=config.engine_memory)
