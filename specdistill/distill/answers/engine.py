"""Inference engines that write a model's answers in transformers' place: what they must do, and how one is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from torch import Tensor

from specdistill.decoding import Generation, Sampling
from specdistill.distill.answers.settings import EngineSettings
from specdistill.errors import ConfigError, ModelError
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


def check_make_engine(settings: EngineSettings, make_engine: MakeEngine | None) -> None:
    """Checks that the caller brought the engine; needs no model.

    Raises:
        ConfigError: The settings name an engine, and the caller passed none.
    """
    if settings.uses_engine and make_engine is None:
        raise ConfigError(f"--rollout-engine {settings.rollout_engine}: pass make_engine (the command line does)")


def build_engine(
    settings: EngineSettings,
    make_engine: MakeEngine | None,
    model: LanguageModel,
    encoded: Sequence[list[int]],
    max_new_tokens: int,
) -> RolloutEngine | None:
    """Makes the engine with the model, long enough for the prompts and their answers.

    Args:
        settings: Which engine.
        make_engine: Makes it.
        model: Held by the engine.
        encoded: The prompts.
        max_new_tokens: Longest answer.

    Returns:
        None where transformers writes.

    Raises:
        ModelError: The model is an adapter, which the engine could not load with its base.
    """
    if not settings.uses_engine or make_engine is None:
        return None
    if model.adapter is not None:
        raise ModelError(
            f"{model.name} is an adapter, and --rollout-engine {settings.rollout_engine} loads whole checkpoints; "
            "leave it away, or write the merged model with 'specdistill export'"
        )
    return make_engine(model, max_length=max(map(len, encoded)) + max_new_tokens, memory=settings.engine_memory)
