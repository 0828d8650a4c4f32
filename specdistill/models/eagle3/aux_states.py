"""Hidden states of some of a target's layers, caught while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from specdistill.models import families
from specdistill.models.language_model import LanguageModel


class AuxStates:
    """Catches hidden states of every pass of the target inside the block, by hooks on the layers.

    Only these states are held, [batch, rows, hidden] each: transformers' output_hidden_states would hold every layer's.

    ```python
    with AuxStates(target, head.aux_layers) as aux:
        hidden = target.hidden_states(input_ids)
        features = head.fuse(aux.take())
    ```

    Args:
        target: Its layers return a tensor, or a tuple that begins with one.
        layers: k stands for the state after k layers, before any final norm; 0 is the embedding.
    """

    def __init__(self, target: LanguageModel, layers: Sequence[int]) -> None:
        self._modules = list(families.decoder_layers(target.base_model, target.config))
        self._wanted = list(layers)
        self._found: dict[int, Tensor] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> AuxStates:
        for number in set(self._wanted):
            if number == 0:
                hook = self._modules[0].register_forward_pre_hook(self._keep_input, with_kwargs=True)
            else:
                hook = self._modules[number - 1].register_forward_hook(self._keeper(number))
            self._hooks.append(hook)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def take(self) -> Tensor:
        """States of the last pass side by side, [batch, rows, layers x hidden]; they are not held any longer."""
        found = torch.cat([self._found[number] for number in self._wanted], -1)
        self._found.clear()
        return found

    def _keeper(self, number: int) -> Any:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._found[number] = output if isinstance(output, Tensor) else output[0]

        return keep

    def _keep_input(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._found[0] = inputs[0] if inputs else named["hidden_states"]
