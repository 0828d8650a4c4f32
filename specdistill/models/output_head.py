"""How a model gets logits from hidden states: found by comparing its own logits with hidden states times the head.

Families multiply or divide the product by a constant of their configuration (Cohere's logit_scale, Granite's
logits_scaling, Falcon-H1's lm_head_multiplier) and some heads have a bias. One pass over a few tokens shows the factor
whatever its name, and refuses a head that no factor explains.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from specdistill.errors import ModelError
from specdistill.models import families

_TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 5e-3}
_TOLERANCE_OF_OTHERS = 3e-2
"""Largest difference allowed, as a share of the largest logit; that of bfloat16 is here."""


def sample_ids(vocab_size: int, count: int) -> list[int]:
    """Some ids of a vocabulary, the same each time."""
    return [(3 + 7 * index) % vocab_size for index in range(count)]


def logit_scale(model: PreTrainedModel, hidden: Tensor, input_ids: Tensor, name: str) -> float:
    """Finds the factor s in logits = softcap(s (hidden @ head.T + bias)).

    Args:
        model: In eval mode.
        hidden: [1, tokens, hidden], of `input_ids`.
        input_ids: int64 [1, tokens].
        name: The model's, for messages.

    Raises:
        ModelError: No factor gives the model's own logits.
    """
    logits = model(input_ids=input_ids, use_cache=False).logits.float()
    head = model.get_output_embeddings()
    assert head is not None, "causal models have an output head"
    product = torch.nn.functional.linear(hidden, head.weight, getattr(head, "bias", None)).float()
    width = min(product.shape[-1], logits.shape[-1])
    product, logits = product[..., :width], logits[..., :width]
    tolerance = _TOLERANCES.get(model.dtype, _TOLERANCE_OF_OTHERS)
    cap = families.final_softcap(model.config)
    # Weights that overflowed say nothing; whoever uses them reports it.
    visible = logits.isfinite() & product.isfinite()
    product, logits = product.where(visible, 0), logits.where(visible, 0)
    plain = logits
    if cap is not None:
        # Logits near the cap tell nothing about what was capped.
        visible = visible & (logits.abs() < 0.9 * cap)
        plain = cap * torch.atanh((logits / cap).clamp(-0.99, 0.99))
    square = (product[visible] ** 2).sum()
    fitted = float((plain[visible] * product[visible]).sum() / square) if square > 0 else 1.0
    scale = _named(fitted, model.config, tolerance)
    scaled = scale * product if cap is None else cap * torch.tanh(scale * product / cap)
    difference = float((scaled - logits).abs().max() / logits.abs().max().clamp(min=1e-6))
    if not difference <= tolerance:
        raise ModelError(
            f"{name} gets its logits in a way that is not known: its head times the hidden states differs from them by "
            f"{difference:.0%} of the largest; 'specdistill bench --engine' measures it in an engine"
        )
    return scale


def _named(fitted: float, config: PretrainedConfig, tolerance: float) -> float:
    """The factor that a configuration names and that explains a fitted one; the fitted one where none does."""
    numbers = [value for value in vars(config).values() if isinstance(value, int | float) and value and value != 1]
    for exact in (1.0, *(1 / value for value in numbers), *(float(value) for value in numbers)):
        if abs(exact - fitted) <= tolerance * abs(fitted):
            return exact
    return fitted
