"""Mixtures of experts: which weights of a model are experts, and to which of them its tokens are sent.

Experts are found by structure, not by the family's name. transformers 5 keeps all experts of a layer in one module,
stacked in parameters [experts, ...], and calls it with the hidden states and the ids of the experts that each token is
sent to. So a hook on that call sees the router's choice in every family (mixtral, qwen3_moe, olmoe, granitemoe,
gpt_oss, deepseek_v3 and the like), while the routers themselves return different things.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from specdistill.models.language_model import LanguageModel


class ExpertLayer:
    """The experts of one layer.

    Args:
        module: Holds their weights.
        count: Number of experts.
    """

    def __init__(self, module: nn.Module, count: int) -> None:
        self.module, self.count = module, count
        weights = [weight for weight in module.parameters() if weight.ndim and weight.shape[0] == count]
        self.parameters = sum(weight.numel() for weight in weights) // count
        """Parameters of one expert."""
        self.weight_bytes = sum(weight.numel() * weight.element_size() for weight in weights) / count
        """Bytes of one expert's parameters."""


def expert_layers(model: LanguageModel) -> list[ExpertLayer]:
    """Finds the layers with experts, in order: modules with two parameters or more that stack matrices."""
    found = []
    for module in model.base_model.modules():
        stacks = [weight.shape[0] for weight in module.parameters(recurse=False) if weight.ndim == 3]
        if len(stacks) >= 2 and min(stacks) > 1:
            found.append(ExpertLayer(module, min(stacks)))
    return found


def step_bytes(model: LanguageModel) -> int:
    """Bytes of the weights that every token reads, experts left out: an embedding that is not the head is looked up."""
    weights = {id(weight): weight.numel() * weight.element_size() for weight in model.model.parameters()}
    experts = {id(weight) for layer in expert_layers(model) for weight in layer.module.parameters()}
    embedding = model.model.get_input_embeddings().weight
    if embedding is not model.head_weight:
        experts.add(id(embedding))
    return sum(size for key, size in weights.items() if key not in experts)


class RoutingRecorder:
    """Records, inside a `with` block, to which experts the tokens of each forward pass are sent.

    Args:
        model: A mixture of experts; nothing is recorded of other models.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.layers = expert_layers(model)
        self._ids: list[list[Tensor]] = [[] for _ in self.layers]
        self._hooks: list[Any] = []

    def __enter__(self) -> RoutingRecorder:
        for number, layer in enumerate(self.layers):

            def record(module: nn.Module, arguments: tuple, named: dict, number: int = number) -> None:
                ids = _routed_ids([*arguments, *named.values()])
                if ids is not None:
                    self._ids[number].append(ids)

            self._hooks.append(layer.module.register_forward_pre_hook(record, with_kwargs=True))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self) -> list[Tensor] | None:
        """The experts since the last call, and forgets them.

        Returns:
            Per layer int64 [tokens, experts per token] on the CPU, with rows and passes one after another. None where
            some layer was not told the ids of its experts: then all of them compute (llama4), or none did.
        """
        taken, self._ids = self._ids, [[] for _ in self.layers]
        if not all(taken):
            return None
        return [torch.cat(parts).cpu() for parts in taken]


def _routed_ids(values: list[Any]) -> Tensor | None:
    """The first matrix of whole numbers among the arguments of a layer's experts: [tokens, experts per token]."""
    for value in values:
        if (
            isinstance(value, Tensor)
            and value.ndim == 2
            and not value.is_floating_point()
            and value.dtype != torch.bool
        ):
            return value.detach().long()
    return None
