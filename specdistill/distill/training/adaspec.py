"""AdaSPEC: a reference draft, and the tokens that lag most behind it. Hu et al. 2025 (arXiv 2510.19779)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from specdistill.models import LanguageModel, ModelPair
from specdistill.models.pair import load_another


def select_tokens(lags: Tensor, fraction: float) -> Tensor:
    """Chooses the tokens that lag most behind the reference.

    Args:
        lags: [tokens] of the whole step.
        fraction: Share of the tokens to choose, in (0, 1].

    Returns:
        [tokens]: 0, or the factor that makes the mean over tokens one over the chosen tokens.

    Source: Hu et al. 2025 (arXiv 2510.19779): the tokens whose KL(target || draft) exceeds the reference's most.
    """
    count = math.ceil(fraction * len(lags))
    factors = torch.zeros_like(lags)
    factors[lags.topk(count).indices] = len(lags) / max(1, count)
    return factors


def load_reference(name: str, pair: ModelPair, say: Callable[[str], None]) -> LanguageModel:
    """Loads AdaSPEC's reference draft, frozen.

    Args:
        name: Hub id, directory or .gguf file.
        pair: Target and draft that it is compared with.
        say: Where a slow conversion announces itself.

    Raises:
        IncompatibleModelsError: Its vocabulary is another.
    """
    reference = load_another(name, "reference", pair.target, pair.draft.device, torch.float32, say)
    reference.model.requires_grad_(False)
    return reference
