"""KV cache in which every row has its own length, and rolling a row back costs nothing.

Keys and values are kept in buffers [batch, heads, capacity, head_dim], which are allocated once. A forward pass writes
the new entries of each row at that row's own positions. The attention mask hides entries beyond a row's length, and
later passes overwrite them. So rejecting tokens means setting a length, and no entry is ever copied.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class RaggedLayer(CacheLayerMixin):
    """Buffers of one layer. `RaggedCache.write_next` sets `write_at` and `extent` before each forward pass."""

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.write_at: Tensor = torch.empty(0, dtype=torch.int64)
        """int64 [batch, new]: positions that the next pass writes."""
        self.extent = 0
        """Number of positions that the next pass attends to."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, _, _ = key_states.shape
        # Masked entries still enter sums as 0 * value, and a stray NaN in uninitialised memory would spread.
        self.keys = key_states.new_zeros(batch, heads, self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes the new entries [batch, heads, new, head_dim] and returns the buffers up to `extent`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        # Positions stay a tensor in both cases, since a compiled or captured step would keep a number for ever.
        if key_states.shape[0] == 1:
            self.keys.index_copy_(2, self.write_at[0], key_states)
            self.values.index_copy_(2, self.write_at[0], value_states)
        else:
            rows = torch.arange(key_states.shape[0], device=key_states.device)[:, None]
            self.keys[rows, :, self.write_at] = key_states.transpose(1, 2)
            self.values[rows, :, self.write_at] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.extent], self.values[:, :, : self.extent]

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows."""
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = self.keys[rows], self.values[rows]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.extent, 0

    def get_seq_length(self) -> int:
        return self.extent

    def get_max_length(self) -> int:
        return self.capacity


class RaggedCache(Cache):
    """A `RaggedLayer` for every decoder layer; all are written at the same positions."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[RaggedLayer(capacity) for _ in range(num_layers)])

    def write_next(self, positions: Tensor, extent: int) -> None:
        """Sets where the next forward pass writes.

        Args:
            positions: int64 [batch, new], all below `extent`.
            extent: Number of positions to attend to.
        """
        for layer in self.layers:
            assert isinstance(layer, RaggedLayer)
            layer.write_at, layer.extent = positions, extent

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows of the batch."""
        for layer in self.layers:
            assert isinstance(layer, RaggedLayer)
            layer.select(rows)
