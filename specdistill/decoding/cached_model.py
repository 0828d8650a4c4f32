"""A model with a ragged KV cache: each row reads some tokens, and keeps as many of them as the caller says."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from specdistill.decoding.ragged_cache import RaggedCache
from specdistill.models import LanguageModel, families

EXTENT = 64
"""Passes attend to a multiple of this many positions; the mask hides those that are not written yet.

So shapes stay the same for 64 steps, and what torch.compile or a CUDA graph has captured serves all of them.
"""


class CachedModel:
    """Runs a `LanguageModel` over a batch whose rows have different lengths, and measures its time.

    Args:
        model: The model.
        batch_size: Number of rows.
        capacity: Positions to allocate per row: at least the longest row plus the tokens of one pass.
    """

    def __init__(self, model: LanguageModel, batch_size: int, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.lengths = [0] * batch_size
        """Tokens that each row keeps."""
        self.seconds = 0.0
        """Time inside forward passes, output head included."""
        self.calls = 0
        """Number of forward passes."""
        self._cache = RaggedCache(families.num_layers(model.config), _rounded(capacity))
        self._types = families.layer_attention_types(model.config)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Runs the model on new tokens, and writes their keys and values after each row's kept tokens.

        Lengths do not change; call `advance` with the number of tokens to keep. The next pass overwrites the others.

        Args:
            token_ids: int64 [batch, new]. Rows may be padded on the right with any id.

        Returns:
            Hidden states [batch, new, hidden].

        Raises:
            ValueError: The new tokens don't fit the capacity.
        """
        start = time.perf_counter()
        device = self.model.device
        new = token_ids.shape[1]
        needed = max(self.lengths) + new
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(new, device=device)
        # Padding takes room too, since it is written like any token.
        if needed > self.capacity:
            raise ValueError(f"cache of {self.capacity} positions can't hold {needed}; allocate more")
        extent = _rounded(needed)
        self._cache.write_next(positions, extent)
        output = self.model.base_model(
            input_ids=token_ids,
            attention_mask=self._masks(positions, extent),
            # Padding may lie beyond the model's last position, where learned position embeddings (GPT-2) end.
            position_ids=positions.clamp(max=self.model.max_context - 1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._stop_clock(start)
        self.calls += 1
        return output.last_hidden_state

    def read(self, rows: list[list[int]]) -> Tensor:
        """Lets each row read and keep its own number of tokens.

        Args:
            rows: New token ids of each row, at least one.

        Returns:
            Hidden state of each row's last token, [batch, hidden].
        """
        device = self.model.device
        longest = max(map(len, rows))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in rows], device=device)
        hidden = self.forward(padded)
        self.advance([len(ids) for ids in rows])
        last = torch.tensor([len(ids) - 1 for ids in rows], device=device)
        return hidden[torch.arange(len(rows), device=device), last]

    def read_next(self, tokens: Tensor) -> Tensor:
        """Lets each row read and keep one token.

        Args:
            tokens: int64 [batch].

        Returns:
            Hidden state of each row's token, [batch, hidden].
        """
        hidden = self.forward(tokens[:, None])
        self.advance([1] * len(tokens))
        return hidden[:, 0]

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, as `LanguageModel.own_logits`; timed as part of the forward pass."""
        start = time.perf_counter()
        logits = self.model.own_logits(hidden)
        self._stop_clock(start)
        return logits

    def advance(self, counts: list[int]) -> None:
        """Adds a number of tokens to each row's length; a negative number drops kept tokens."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def set_lengths(self, lengths: list[int]) -> None:
        """Rolls each row back to a length that it has had before."""
        self.lengths = list(lengths)

    def select(self, rows: list[int]) -> None:
        """Keeps only the given rows."""
        self._cache.select(torch.tensor(rows, device=self.model.device))
        self.lengths = [self.lengths[row] for row in rows]

    def _stop_clock(self, start: float) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def _masks(self, positions: Tensor, extent: int) -> Tensor | dict[str, Tensor] | None:
        keys = torch.arange(extent, device=positions.device)
        distance = positions[:, :, None] - keys
        full = distance >= 0
        window = families.uniform_sliding_window(self.model.config)
        if window is not None:
            return self._additive(full & (distance < window))
        if self._types is None:
            return self._additive(full)
        masks = {"full_attention": self._additive(full)}
        if "sliding_attention" in self._types:
            masks["sliding_attention"] = self._additive(full & (distance < self.model.config.sliding_window))
        return masks

    def _additive(self, visible: Tensor) -> Tensor:
        # Eager and sdpa attention both accept an additive mask [batch, 1, new, keys] as it is.
        dtype = self.model.model.dtype
        blocked = torch.finfo(dtype).min
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, blocked)[:, None]


def _rounded(positions: int) -> int:
    return -(-positions // EXTENT) * EXTENT
