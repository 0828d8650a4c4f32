"""The hidden states of a target that a head reads: what goes into some layers, of every token of every row.

They are kept as keys and values are (see `ragged_cache`): each pass writes the states of its tokens at the tokens'
positions, and later passes overwrite those of tokens that were dropped. Rolling a row back costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specdistill.models import LanguageModel, families


class TargetFeatures:
    """Inputs of some layers of a model, by row and position.

    Args:
        model: The target.
        layers: Numbers of the layers, counted from 0.
        batch: Number of rows.
        capacity: Positions of each row.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], batch: int, capacity: int) -> None:
        decoder_layers = families.decoder_layers(model.base_model, model.config)
        self._layers = [decoder_layers[layer] for layer in layers]
        self._batch, self._capacity = batch, capacity
        self._kept: Tensor | None = None
        """[batch, capacity, layers * hidden]."""

    @contextlib.contextmanager
    def of_pass(self, positions: Tensor, row: int | None = None) -> Iterator[None]:
        """Keeps what the pass inside the block shows.

        Args:
            positions: int64 [rows, new], of the tokens that the pass reads.
            row: The only row of the pass; None for all.
        """
        seen: dict[int, Tensor] = {}
        with contextlib.ExitStack() as hooks:
            for number, layer in enumerate(self._layers):
                hook = layer.register_forward_pre_hook(_storing(seen, number), with_kwargs=True)
                hooks.callback(hook.remove)
            yield
        states = torch.cat([seen[number] for number in range(len(self._layers))], dim=-1)
        if self._kept is None:
            # Zeros: what is read beyond a row's end is masked, but NaN would spread.
            self._kept = states.new_zeros(self._batch, self._capacity, states.shape[-1])
        rows = torch.arange(self._batch, device=states.device) if row is None else torch.tensor([row])
        self._kept[rows.to(states.device)[:, None], positions] = states

    def at(self, positions: Tensor) -> Tensor:
        """States [rows, new, layers * hidden] of the first rows at int64 positions [rows, new]."""
        assert self._kept is not None, "the target reads first"
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        return self._kept[rows, positions.clamp(max=self._capacity - 1)]

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows."""
        self._batch = len(rows)
        if self._kept is not None:
            self._kept = self._kept[rows]


def _storing(seen: dict[int, Tensor], number: int):
    def store(module: object, inputs: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        seen[number] = inputs[0] if inputs else keywords["hidden_states"]

    return store
