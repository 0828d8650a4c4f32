"""Decoding without a cache, for models whose layers don't take ours: every step reads the whole text again.

Slow, and exact by construction: each hidden state is that of a plain pass over its row's text alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.clock import Clock
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.models import LanguageModel


class RecomputedModel:
    """Used as a `CachedModel` is.

    Args:
        model: Any causal model.
        batch_size: Number of rows.
    """

    def __init__(self, model: LanguageModel, batch_size: int) -> None:
        self.model = model
        self.clock = Clock(model.device)
        """Measures forward passes."""
        self.calls = 0
        """Number of passes over all rows."""
        self._kept: list[list[int]] = [[] for _ in range(batch_size)]
        self._fed: list[list[int]] = [[] for _ in range(batch_size)]

    @property
    def seconds(self) -> float:
        """Time inside forward passes."""
        return self.clock.seconds

    def forward(self, token_ids: Tensor) -> Tensor:
        """Hidden states of new tokens, [batch, new, hidden]; see `CachedModel.forward`."""
        self.calls += 1
        self._fed = token_ids.tolist()
        with self.clock:
            return torch.stack([self._last_states(row) for row in range(len(self._kept))])

    def read(self, rows: list[list[int]]) -> Tensor:
        """Hidden state of each row's last token, [batch, hidden]; see `CachedModel.read`."""
        self.calls += 1
        self._fed = rows
        with self.clock:
            ends = torch.stack([self._last_states(row)[-1] for row in range(len(rows))])
        self.advance([len(ids) for ids in rows])
        return ends

    def read_next(self, tokens: Tensor) -> Tensor:
        """Hidden state of each row's next token, [batch, hidden]; see `CachedModel.read_next`."""
        hidden = self.forward(tokens[:, None])
        self.advance([1] * len(tokens))
        return hidden[:, 0]

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states, as `LanguageModel.own_logits`."""
        return self.model.own_logits(hidden)

    def advance(self, counts: list[int]) -> None:
        """Keeps that many of the tokens that each row read last."""
        self._kept = [
            kept + fed[:count] if count >= 0 else kept[:count]
            for kept, fed, count in zip(self._kept, self._fed, counts, strict=True)
        ]

    def set_lengths(self, lengths: list[int]) -> None:
        """Rolls each row back to a length that it has had before."""
        self._kept = [kept[:length] for kept, length in zip(self._kept, lengths, strict=True)]

    def select(self, rows: list[int]) -> None:
        """Keeps only the given rows."""
        self._kept = [self._kept[row] for row in rows]
        self._fed = [self._fed[row] for row in rows]

    def _last_states(self, row: int) -> Tensor:
        text = self._kept[row] + self._fed[row]
        hidden = self.model.hidden_states(torch.tensor([text], device=self.model.device))
        return hidden[0, -len(self._fed[row]) :]


def plain_model(model: LanguageModel, batch_size: int, capacity: int) -> CachedModel | RecomputedModel:
    """A model with a cache if it is proven to decode exactly with it, else one that reads everything again.

    Args:
        model: Any causal model.
        batch_size: Number of rows.
        capacity: Positions to allocate per row.
    """
    if prove(model).decodes:
        return cached(model, batch_size, capacity)
    return RecomputedModel(model, batch_size)
