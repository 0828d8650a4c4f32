"""Classifier-free guidance: a model's distribution pushed away from what it says after a negative prompt."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from specdistill.errors import ConfigError
from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Guidance:
    """log p'(y|x) = (1 + weight) log p(y|x) - weight log p(y|negative) + constant.

    A softmax ignores constants, and an output head without softcap is linear: mixing the two hidden states alike gives
    logits of exactly that distribution, so nothing behind the hidden states has to know of guidance.

    Source: Sanchez et al. 2023 (arXiv 2306.17806).
    """

    negative_ids: tuple[int, ...]
    """The negative prompt, in the target's chat template."""
    weight: float
    """0 is no guidance."""

    def combine(self, hidden: Tensor, negative: Tensor) -> Tensor:
        """Hidden states of the guided distribution, of any shape."""
        return (1 + self.weight) * hidden - self.weight * negative

    def check(self, model: LanguageModel) -> None:
        """Raises ConfigError for a model whose logits are capped: they are not linear in the hidden states."""
        if model.softcap is not None:
            raise ConfigError(f"--guidance can't be used with {model.name}, whose logits are capped (Gemma 2)")
