"""A model's embedding and output head without its layers: what training a head reads of the target itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from specdistill.models.language_model import LanguageModel

_EMBEDDING, _HEAD, _BIAS = "embedding", "head", "head_bias"


@dataclass(frozen=True)
class OuterWeights:
    """Embedding and output head of a model that is not here."""

    tensors: Mapping[str, Tensor]
    """As `outer_weights` gives them."""
    logit_scale: float
    """Factor on the head's product."""


def with_outer_weights(
    shell: LanguageModel, outer: OuterWeights | None, device: str, dtype: torch.dtype
) -> LanguageModel:
    """A shell with these weights, whose layers still have none; the shell itself where there are none."""
    if outer is None:
        return shell
    tensors = {name: _frozen(tensor, device, dtype) for name, tensor in outer.tensors.items()}
    embedding: Any = shell.model.get_input_embeddings()
    head: Any = shell.model.get_output_embeddings()
    embedding.weight = tensors[_EMBEDDING]
    # The same tensor where the two are tied.
    head.weight = tensors.get(_HEAD, embedding.weight)
    if _BIAS in tensors:
        head.bias = tensors[_BIAS]
    return dataclasses.replace(shell, _logit_scale=outer.logit_scale)


def outer_weights(model: LanguageModel) -> dict[str, Tensor]:
    """Embedding and output head by name, as they lie in the model; one tensor where they are tied."""
    embedding: Any = model.model.get_input_embeddings()
    found: dict[str, Tensor] = {_EMBEDDING: embedding.weight}
    if model.head_weight is not embedding.weight:
        found[_HEAD] = model.head_weight
    if model.head_bias is not None:
        found[_BIAS] = model.head_bias
    return found


def _frozen(tensor: Tensor, device: str, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(tensor.to(device, dtype), requires_grad=False)
