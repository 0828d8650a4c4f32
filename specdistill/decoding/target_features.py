"""The hidden states of a target that a head reads: those of some layers, of every token of every row.

They are kept as keys and values are (see `ragged_cache`): each pass writes the states of its tokens at the tokens'
positions, and later passes overwrite those of tokens that were dropped. Rolling a row back costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from specdistill.models import LanguageModel
from specdistill.models.eagle3 import AuxStates


class TargetFeatures:
    """Hidden states of some layers of a model, by row and position.

    Args:
        model: The target.
        layers: k stands for the state after k layers, as for `AuxStates`.
        batch: Number of rows.
        capacity: Positions of each row.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], batch: int, capacity: int) -> None:
        self._states = AuxStates(model, layers)
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
        with self._states:
            yield
        states = self._states.take()
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
