"""A model with a ragged KV cache: feed each row some tokens, get hidden states, advance each row by what was kept."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from specdistill.decoding.ragged_cache import RaggedCache
from specdistill.models import LanguageModel, families

# Keys are attended to in multiples of this many positions, so that steps keep their shapes while a sequence grows: what
# torch.compile or a CUDA graph has captured serves 64 steps, not one. The mask hides what is not written yet.
EXTENT = 64


class CachedModel:
    """Runs a `LanguageModel` over a batch whose rows have different lengths, and times it.

    Args:
        model: The model.
        batch_size: Rows.
        capacity: Positions to allocate per row; at least the longest row plus what one pass feeds.
    """

    def __init__(self, model: LanguageModel, batch_size: int, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.lengths = [0] * batch_size
        self.seconds = 0.0
        """Time spent inside forward passes, the output head included."""
        self.calls = 0
        self._cache = RaggedCache(families.num_layers(model.config), _rounded(capacity))
        self._types = families.layer_attention_types(model.config)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Hidden states [batch, new, hidden] of new tokens int64 [batch, new], written after each row's length.

        Lengths do not change: call `advance` with what turned out to be real. Rows may be padded on the right with any
        id; padding is written too, and overwritten by the next pass.
        """
        start = time.perf_counter()
        device = self.model.device
        new = token_ids.shape[1]
        needed = max(self.lengths) + new
        positions = torch.tensor(self.lengths, device=device)[:, None] + torch.arange(new, device=device)
        # Right padding may run past the longest row: it has to be written somewhere that no row reads.
        if needed > self.capacity:
            raise ValueError(f"cache of {self.capacity} positions can't hold {needed}; allocate more")
        extent = _rounded(needed)
        self._cache.write_next(positions, extent)
        output = self.model.base_model(
            input_ids=token_ids,
            attention_mask=self._masks(positions, extent),
            # Padding beyond the last real position must not index past learned position embeddings (GPT-2).
            position_ids=positions.clamp(max=self.model.max_context - 1),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._stop_clock(start)
        self.calls += 1
        return output.last_hidden_state

    def own_logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits of some hidden states; timed as part of the forward pass."""
        start = time.perf_counter()
        logits = self.model.own_logits(hidden)
        self._stop_clock(start)
        return logits

    def advance(self, counts: list[int]) -> None:
        """Makes each row longer by the given number of the tokens just fed (or shorter, to roll back)."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def set_lengths(self, lengths: list[int]) -> None:
        """Rolls each row to a length that it had reached before."""
        self.lengths = list(lengths)

    def select(self, rows: list[int]) -> None:
        """Goes on with only some of the rows."""
        self._cache.select(torch.tensor(rows, device=self.model.device))
        self.lengths = [self.lengths[row] for row in rows]

    def _stop_clock(self, start: float) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def _masks(self, positions: Tensor, extent: int) -> Tensor | dict[str, Tensor] | None:
        keys = torch.arange(extent, device=positions.device)
        behind = positions[:, :, None] - keys
        full = behind >= 0
        window = families.uniform_sliding_window(self.model.config)
        if window is not None:
            return self._additive(full & (behind < window))
        if self._types is None:
            return self._additive(full)
        masks = {"full_attention": self._additive(full)}
        if "sliding_attention" in self._types:
            masks["sliding_attention"] = self._additive(full & (behind < self.model.config.sliding_window))
        return masks

    def _additive(self, visible: Tensor) -> Tensor:
        # Additive and four-dimensional: the one form that both the eager and the sdpa attention take as it is.
        dtype = self.model.model.dtype
        blocked = torch.finfo(dtype).min
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, blocked)[:, None]


def _rounded(positions: int) -> int:
    return -(-positions // EXTENT) * EXTENT
