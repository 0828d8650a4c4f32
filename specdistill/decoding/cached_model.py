"""A model with a ragged KV cache: each row reads some tokens, and keeps as many of them as the caller says."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from specdistill.decoding.ragged_cache import RaggedCache
from specdistill.models import LanguageModel, families
from specdistill.models.language_model import LONG_TEXT

EXTENT = 64
"""Passes attend to a multiple of this many positions; the mask hides those that are not written yet.

So shapes stay the same for 64 steps, and what torch.compile or a CUDA graph has captured serves all of them.
"""
WHOLE_BYTES = 2**28
"""Rows up to `LONG_TEXT` are read in one pass, if what attention needs for it stays below so many bytes."""
PASS_BYTES = 2**27
"""Limit of the same in each of the passes that read longer rows."""


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
        """Number of forward passes. Reading a long text counts as one, however many passes memory asks for."""
        self._cache = RaggedCache(families.num_cached_layers(model.base_model, model.config), _rounded(capacity))
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
        self.calls += 1
        return self._pass(token_ids)

    def _pass(self, token_ids: Tensor, offset: int = 0) -> Tensor:
        """Runs one pass over tokens that follow each row's kept ones and `offset` others, which were just read."""
        start = time.perf_counter()
        device = self.model.device
        new = token_ids.shape[1]
        needed = max(self.lengths) + offset + new
        positions = torch.tensor(self.lengths, device=device)[:, None] + offset + torch.arange(new, device=device)
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
        return output.last_hidden_state

    def passes(self, rows: list[list[int]]) -> Iterator[tuple[int, Tensor]]:
        """Lets each row read its own number of tokens, in as many passes as memory asks for, and keep them.

        One pass over everything would need memory for every pair of a new token and an older one: 8 GB for eight rows
        of 16,000 tokens. Every row takes part in every pass; a row that has ended reads padding.

        Args:
            rows: New token ids of each row, at least one. They are kept when the last pass is done.

        Yields:
            Number of the pass's first token, counted in the new tokens, and hidden states [batch, tokens, hidden].
        """
        longest = max(map(len, rows))
        width = self._tokens_per_pass(longest)
        self.calls += 1
        for start in range(0, longest, width):
            parts = [ids[start : start + width] for ids in rows]
            most = max(map(len, parts))
            padded = torch.tensor([ids + [0] * (most - len(ids)) for ids in parts], device=self.model.device)
            yield start, self._pass(padded, start)
        self.advance([len(ids) for ids in rows])

    def _tokens_per_pass(self, longest: int) -> int:
        # A mask takes 4 bytes for each pair of tokens and 1 while it is made; eager attention 3 float32 numbers a head.
        config, pair_bytes = self.model.config, 5 * len(set(self._types or ("",)))
        if getattr(config, "_attn_implementation", None) == "eager":
            pair_bytes += 12 * config.num_attention_heads
        token_bytes = pair_bytes * len(self.lengths) * _rounded(max(self.lengths) + longest)
        if longest <= LONG_TEXT and longest * token_bytes <= WHOLE_BYTES:
            return longest
        return min(LONG_TEXT, max(EXTENT, PASS_BYTES // token_bytes // EXTENT * EXTENT))

    def read(self, rows: list[list[int]]) -> Tensor:
        """Lets each row read and keep its own number of tokens.

        Args:
            rows: New token ids of each row, at least one.

        Returns:
            Hidden state of each row's last token, [batch, hidden].
        """
        last = torch.tensor([len(ids) - 1 for ids in rows], device=self.model.device)
        ends: Tensor | None = None
        for start, hidden in self.passes(rows):
            at = last - start
            picked = hidden[torch.arange(len(rows), device=hidden.device), at.clamp(0, hidden.shape[1] - 1)]
            inside = (at >= 0) & (at < hidden.shape[1])
            ends = picked if ends is None else torch.where(inside[:, None], picked, ends)
        assert ends is not None, "each row has a token"
        return ends

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
        # Comparisons of positions, not of distances: int64 distances would be 8 bytes per pair of tokens.
        latest = positions[:, :, None]
        window = families.uniform_sliding_window(self.model.config)
        if window is not None:
            return self._additive((keys > latest).logical_or_(keys <= latest - window))
        if self._types is None:
            return self._additive(keys > latest)
        masks = {"full_attention": self._additive(keys > latest)}
        if "sliding_attention" in self._types:
            window = self.model.config.sliding_window
            masks["sliding_attention"] = self._additive((keys > latest).logical_or_(keys <= latest - window))
        return masks

    def _additive(self, unseen: Tensor) -> Tensor:
        """Additive mask of the pairs that attention must not see, [batch, new, keys]."""
        # Eager and sdpa attention both accept an additive mask [batch, 1, new, keys] as it is.
        dtype = self.model.model.dtype
        mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
        return mask.masked_fill_(unseen, torch.finfo(dtype).min)[:, None]


def _rounded(positions: int) -> int:
    return -(-positions // EXTENT) * EXTENT
