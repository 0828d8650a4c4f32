"""KV cache in which every row has its own length, and rolling a row back costs nothing.

Keys and values are kept in buffers [batch, heads, capacity, head_dim], which are allocated once. A forward pass writes
the new entries of each row at that row's own positions. The attention mask hides entries beyond a row's length, and
later passes overwrite them. So rejecting tokens means setting a length, and no entry is ever copied.

Layers that keep a state instead (linear attention, short convolutions) can't be rolled back. They have the state of
each row, which only grows: each row reads its prompt alone, then all rows read one token at a time.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, cache_utils
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin, LinearAttentionLayer

from specdistill.models import families

_NothingKept: Any = getattr(cache_utils, "DummyLayer", ())
"""Class of layers that keep nothing; transformers 5.19 has none."""

_STATE = ("conv_states", "recurrent_states")
_STATE_FACTS = (
    *_STATE,
    "is_conv_states_initialized",
    "is_recurrent_states_initialized",
    "has_previous_state",
    "conv_kernel_size",
)
"""Attributes of a layer's state, each a dictionary: a layer may have several states."""


class RaggedLayer(CacheLayerMixin):
    """Buffers of one layer. `RaggedCache.write_next` sets where and how much the next pass writes and reads.

    Args:
        batch: Number of rows.
        capacity: Positions of each row.
    """

    is_sliding = False

    def __init__(self, batch: int, capacity: int) -> None:
        super().__init__()
        self.batch, self.capacity = batch, capacity
        self.write_at: Tensor = torch.empty(0, dtype=torch.int64)
        """int64 [rows, new]: positions that the next pass writes."""
        self.extent = self.start = 0
        """Number of positions that the next pass attends to, and of those before its first token."""
        self.row: int | None = None
        """The only row that the next pass reads; None for the first ones, as many as the pass has."""
        self.stays = False
        """Whether buffers keep their place and size for ever, as captured graphs need."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Masked entries still enter sums as 0 * value, and a stray NaN in uninitialised memory would spread.
        self.keys = key_states.new_zeros(self.batch, key_states.shape[1], self.capacity, key_states.shape[-1])
        self.values = value_states.new_zeros(self.batch, value_states.shape[1], self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Writes the new entries [rows, heads, new, head_dim] and returns the buffers up to `extent`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        rows = self._rows(key_states)
        return (
            _write(self.keys[rows], key_states, self.write_at)[:, :, : self.extent],
            _write(self.values[rows], value_states, self.write_at)[:, :, : self.extent],
        )

    def _rows(self, states: Tensor) -> slice:
        # A slice, so that writing into it writes into the buffers.
        return slice(0, len(states)) if self.row is None else slice(self.row, self.row + 1)

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows, which move to the front."""
        if not self.stays:
            self.batch = len(rows)
        if self.is_initialized:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = self._selected(self.keys, rows), self._selected(self.values, rows)

    def _selected(self, buffer: Tensor, rows: Tensor) -> Tensor:
        if not self.stays:
            return buffer[rows]
        buffer[: len(rows)] = buffer[rows]
        return buffer

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.extent, 0

    def get_seq_length(self) -> int:
        return self.start

    def get_max_length(self) -> int:
        return self.capacity


def _write(buffer: Tensor, states: Tensor, positions: Tensor) -> Tensor:
    # Positions stay a tensor in both cases, since a compiled or captured step would keep a number for ever.
    if states.shape[0] == 1:
        buffer.index_copy_(2, positions[0], states)
    else:
        rows = torch.arange(states.shape[0], device=states.device)[:, None]
        buffer[rows, :, positions] = states.transpose(1, 2)
    return buffer


class RaggedIndexedLayer(RaggedLayer):
    """A layer whose attention also keeps a key of each token for choosing which ones to look at (DeepSeek V3.2)."""

    indexer_keys: Tensor | None = None
    """[batch, capacity, size]."""

    def update_indexer(self, indexer_key_states: Tensor) -> Tensor:
        """Writes the new keys [rows, new, size] and returns the buffer up to `extent`."""
        states = indexer_key_states
        if self.indexer_keys is None:
            self.indexer_keys = states.new_zeros(self.batch, self.capacity, states.shape[-1])
        rows = self._rows(states)
        # One head, so that the buffers of keys and these are written alike.
        return _write(self.indexer_keys[rows][:, None], states[:, None], self.write_at)[:, 0, : self.extent]

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows."""
        super().select(rows)
        if self.indexer_keys is not None:
            self.indexer_keys = self._selected(self.indexer_keys, rows)


class RaggedHybridLayer(LinearAttentionLayer, RaggedLayer):
    """A layer with both a state and attention."""

    is_compileable = False

    def __init__(self, batch: int, capacity: int, number_of_states: int) -> None:
        RaggedLayer.__init__(self, batch, capacity)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args, **kwargs) -> None:
        """Sets up keys and values, which come as two arguments, or a state, which comes by name."""
        (RaggedLayer if args else LinearAttentionLayer).lazy_initialization(self, *args, **kwargs)


class RaggedCache(Cache):
    """A `RaggedLayer` for every decoder layer, all written at the same positions; states where layers keep some.

    Args:
        base_model: Its layers may be fewer than their numbers say, while `cut.only_layers` hides some.
        config: Says which layers keep a state.
        batch: Number of rows.
        capacity: Positions of each row.
    """

    def __init__(self, base_model: nn.Module, config: PretrainedConfig, batch: int, capacity: int) -> None:
        layers = {
            index: _like(own, batch, capacity)
            for index, own in zip(_numbers(base_model, config), families.cache_layers(config), strict=False)
        }
        number = max(families.num_layers(config), 1 + max(layers, default=0))
        super().__init__(layers=[layers.get(index) or RaggedLayer(batch, capacity) for index in range(number)])
        self._blank = [_state_of(layer) for layer in self.layers]
        self._alone: dict[int, list[dict[str, Any]]] = {}

    @property
    def recurrent(self) -> bool:
        """Whether a layer keeps a state, so that no row can be rolled back."""
        return any(self._blank)

    def write_next(self, positions: Tensor, extent: int, start: int, row: int | None = None) -> None:
        """Sets where the next forward pass writes.

        Args:
            positions: int64 [rows, new], all below `extent`.
            extent: Number of positions to attend to.
            start: Number of positions before the first new token, of the shortest row.
            row: The only row of the pass; None for all.
        """
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.write_at, layer.extent, layer.start, layer.row = positions, extent, start, row

    @contextlib.contextmanager
    def first_pass_of(self, row: int) -> Iterator[None]:
        """Lets one row read its prompt alone inside the block; `join` follows when all rows have."""
        for layer, blank in zip(self.layers, self._blank, strict=True):
            vars(layer).update(copy.deepcopy(blank))
        yield
        self._alone[row] = [_state_of(layer) for layer in self.layers]

    def join(self) -> None:
        """Puts the states of all rows into one batch."""
        rows = [self._alone[row] for row in sorted(self._alone)]
        for index, layer in enumerate(self.layers):
            for name in _STATE if self._blank[index] else ():
                for number, state in rows[0][index][name].items():
                    if state is not None:
                        getattr(layer, name)[number] = torch.cat([row[index][name][number] for row in rows])
        self._alone.clear()

    def select(self, rows: Tensor) -> None:
        """Keeps only the given rows of the batch."""
        for layer in self.layers:
            if isinstance(layer, RaggedLayer):
                layer.select(rows)
            if isinstance(layer, LinearAttentionCacheLayerMixin):
                for states in (layer.conv_states, layer.recurrent_states):
                    states.update({number: state[rows] for number, state in states.items() if state is not None})


def _numbers(base_model: nn.Module, config: PretrainedConfig) -> list[int]:
    """Number under which each layer finds its cache: its own, or its place where it has none."""
    numbers = []
    for place, layer in enumerate(families.decoder_layers(base_model, config)):
        own = [getattr(part, "layer_idx", None) for part in (layer, *layer.children())]
        numbers.append(next((number for number in own if number is not None), place))
    return numbers


def _like(own: object, batch: int, capacity: int) -> Any:
    """A layer that keeps what transformers' own one does."""
    if isinstance(own, _NothingKept):
        return own
    if not isinstance(own, LinearAttentionCacheLayerMixin):
        return (RaggedIndexedLayer if hasattr(own, "update_indexer") else RaggedLayer)(batch, capacity)
    if isinstance(own, CacheLayerMixin):
        return RaggedHybridLayer(batch, capacity, own.number_of_states)
    return own


def _state_of(layer: object) -> dict[str, Any]:
    """A layer's state and the facts about it; empty for layers of plain attention."""
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        return {}
    return {name: dict(getattr(layer, name)) for name in _STATE_FACTS}
