"""A model with a ragged KV cache: each row reads some tokens, and keeps as many of them as the caller says."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor

from specdistill.decoding.clock import Clock
from specdistill.decoding.masks import branch_masks, kinds_of_masks
from specdistill.decoding.reader import Reader
from specdistill.decoding.step_runner import EAGER, EXTENT, Shapes, Step, rounded, runner_of
from specdistill.decoding.target_features import TargetFeatures
from specdistill.decoding.transfers import to_device
from specdistill.models import LanguageModel
from specdistill.models.language_model import LONG_TEXT

WIDEST_STEP = 32
"""Passes over more tokens are never captured: texts have any length, and long passes are not bound by launches."""
_WIDEST_READ = 2
"""The same where rows read texts: a draft has so many tokens to read in each round, and prompts have any number."""
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
        self.clock = Clock(model.device)
        """Measures forward passes, output head included."""
        self.calls = 0
        """Number of forward passes. Reading a long text counts as one, however many passes memory asks for."""
        self._steps = runner_of(model)
        self._cache = self._steps.new_cache(self, model, batch_size, capacity)
        self.reader = Reader(model, self._cache)
        """Its passes, for steps: a step must not refer to this object, which a captured one would keep for ever."""
        self._starts: Tensor | None = None
        """`lengths` on the device, int64 [batch]; None where they have changed since."""

    @property
    def seconds(self) -> float:
        """Time inside forward passes, output head included."""
        return self.clock.seconds

    @property
    def recurrent(self) -> bool:
        """Whether layers keep a state, so that rows read their prompts alone and nothing is ever dropped."""
        return self._cache.recurrent

    @property
    def captures(self) -> bool:
        """Whether steps run as captured graphs."""
        return self._steps.captures

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

    def _pass(self, token_ids: Tensor, offsets: list[int] | None = None, widest: int = WIDEST_STEP) -> Tensor:
        """Runs one pass over tokens that follow each row's kept ones and its `offsets` others, which were just read.

        It is a step if it has `widest` tokens at most.
        """
        new = token_ids.shape[1]
        with self.clock:
            if offsets is None and new <= widest:
                return self.step("pass", new, functools.partial(_hidden, self.reader), token_ids)[0]
            # Padding takes room too, since it is written like any token.
            starts = self._behind(offsets or [0] * len(self.lengths))
            shapes = Shapes(rounded(self._fitting(new, starts)), min(starts))
            at = self._row_starts() if offsets is None else to_device(starts, self.model.device)
            return self.reader.states(token_ids, at, shapes)

    def _behind(self, offsets: list[int]) -> list[int]:
        return [length + offset for length, offset in zip(self.lengths, offsets, strict=True)]

    def step(self, name: Hashable, new: int, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs a step as the model's runner does: at once, or as a graph that was captured for its shapes.

        The outputs of a captured step are overwritten when this model runs a captured step again.

        Args:
            name: Says which step it is; two steps of one name differ in nothing but their inputs.
            new: Most tokens that it reads behind a row's kept ones.
            step: Called with `Shapes`, the rows' lengths int64 [rows] and the inputs. Lengths are not changed.
            inputs: Tensors, one row for each row of the batch.

        Raises:
            ValueError: The new tokens don't fit the capacity.
        """
        needed, shortest = self._fitting(new, self.lengths), min(self.lengths)
        return self._steps.run(self._cache, name, step, (needed, shortest), (self._row_starts(), *inputs))

    def has_room(self, new: int) -> bool:
        """Whether every row can read so many more tokens."""
        return max(self.lengths) + new <= self.capacity

    def _fitting(self, new: int, starts: list[int]) -> int:
        needed = max(starts) + new
        if needed > self.capacity:
            raise ValueError(f"cache of {self.capacity} positions can't hold {needed}; allocate more")
        return needed

    def watch(self, layers: Sequence[int]) -> TargetFeatures:
        """Keeps the states after so many layers from now on, for a head that reads them; steps then run eagerly."""
        self._steps = EAGER
        self.reader.features = TargetFeatures(self.model, layers, len(self.lengths), rounded(self.capacity))
        return self.reader.features

    def _row_starts(self) -> Tensor:
        if self._starts is None:
            self._starts = to_device(self.lengths, self.model.device)
        return self._starts

    def branches(self, token_ids: Tensor, positions: Tensor, anchors: Tensor) -> Tensor:
        """Runs tokens that continue the only row's text behind different tokens of it; none of them is kept.

        Args:
            token_ids, positions: int64 [1, new].
            anchors: int64 [1, new]; see `masks.branch_masks`.

        Returns:
            Hidden states [1, new, hidden].
        """
        (kept,), new = self.lengths, token_ids.shape[1]
        assert kept + new <= self.capacity, "branches are written behind the text"
        extent = rounded(kept + new)
        self._cache.write_next(torch.arange(kept, kept + new, device=positions.device)[None], extent, kept)
        masks = branch_masks(self.model.config, positions, anchors, kept, extent, self.model.model.dtype)
        return self.reader.run(token_ids, positions, masks)

    def passes(self, rows: list[list[int]]) -> Iterator[tuple[int, Tensor]]:
        """Lets each row read its own number of tokens, in as many passes as memory asks for, and keep them.

        One pass over everything would need memory for every pair of a new token and an older one: 8 GB for eight rows
        of 16,000 tokens. Every row takes part in every pass; a row that has ended reads padding behind its last token.
        A pass is never wider than the room behind the longest row, so rows that lag by any number can catch up.

        Args:
            rows: New token ids of each row, at least one. They are kept when the last pass is done.

        Yields:
            Number of the pass's first token, counted in the new tokens, and hidden states [batch, tokens, hidden].
        """
        longest = max(map(len, rows))
        width = self._tokens_per_pass(longest)
        self.calls += 1
        start = 0
        while start < longest:
            read = [min(start, len(ids)) for ids in rows]
            fitting = max(1, min(width, self.capacity - max(self._behind(read))))
            parts = [ids[start : start + fitting] for ids in rows]
            most = max(map(len, parts))
            padded = to_device([ids + [0] * (most - len(ids)) for ids in parts], self.model.device)
            yield start, self._pass(padded, read if start else None, widest=_WIDEST_READ)
            start += most
        self.advance([len(ids) for ids in rows])

    def _tokens_per_pass(self, longest: int) -> int:
        # A mask takes 4 bytes for each pair of tokens and 1 while it is made; eager attention 3 float32 numbers a head.
        config = self.model.config
        pair_bytes = 5 * len(kinds_of_masks(config))
        if getattr(config, "_attn_implementation", None) == "eager":
            pair_bytes += 12 * config.num_attention_heads
        token_bytes = pair_bytes * len(self.lengths) * rounded(max(self.lengths) + longest)
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
        if self.recurrent:
            return self._read_alone(rows)
        last = to_device([len(ids) - 1 for ids in rows], self.model.device)
        ends: Tensor | None = None
        for start, hidden in self.passes(rows):
            at = last - start
            picked = hidden[torch.arange(len(rows), device=hidden.device), at.clamp(0, hidden.shape[1] - 1)]
            inside = (at >= 0) & (at < hidden.shape[1])
            ends = picked if ends is None else torch.where(inside[:, None], picked, ends)
        assert ends is not None, "each row has a token"
        return ends

    def _read_alone(self, rows: list[list[int]]) -> Tensor:
        """Lets each row read its prompt in a pass of its own: padding would change the state that a row keeps."""
        assert not any(self.lengths), "a state has one beginning"
        ends = []
        with self.clock:
            for row, ids in enumerate(rows):
                token_ids = to_device([ids], self.model.device)
                positions = torch.arange(len(ids), device=self.model.device)[None]
                self._cache.write_next(positions, len(ids), 0, row)
                with self._cache.first_pass_of(row):
                    # Without other rows and older tokens the model's own masks are right, and need less memory.
                    ends.append(self.reader.run(token_ids, positions, None, row)[0, -1])
            self._cache.join()
        self.calls += 1
        self.advance([len(ids) for ids in rows])
        return torch.stack(ends)

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
        with self.clock:
            return self.model.own_logits(hidden)

    def advance(self, counts: list[int]) -> None:
        """Adds a number of tokens to each row's length; a negative number drops kept tokens."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        same = len(set(counts)) == 1
        self._starts = self._starts + counts[0] if same and self._starts is not None else None

    def set_lengths(self, lengths: list[int]) -> None:
        """Rolls each row back to a length that it has had before."""
        assert lengths == self.lengths or not self.recurrent, "a state can't be rolled back"
        if lengths != self.lengths:
            self.lengths, self._starts = list(lengths), None

    def select(self, rows: list[int]) -> None:
        """Keeps only the given rows."""
        kept = to_device(rows, self.model.device)
        self._cache.select(kept)
        if self.reader.features is not None:
            self.reader.features.select(kept)
        self.lengths, self._starts = [self.lengths[row] for row in rows], None


def _hidden(reader: Reader, shapes: Shapes, starts: Tensor, token_ids: Tensor) -> tuple[Tensor]:
    """The step that is one pass: hidden states [rows, new, hidden]."""
    return (reader.states(token_ids, starts, shapes),)
