"""A cached model under classifier-free guidance, and the choice between it and a plain one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.guidance import Guidance
from specdistill.decoding.recomputed import RecomputedModel, plain_model
from specdistill.decoding.target_features import TargetFeatures
from specdistill.models import LanguageModel


class GuidedModel:
    """Used as a `CachedModel` is: each row has a twin that reads the negative prompt and the same answer.

    Row numbers, counts and lengths are those of the rows alone. Hidden states come mixed, and a pass over both counts
    as one.

    Args:
        model: The model.
        guidance: Negative prompt and weight.
        batch_size: Number of rows, twins not counted.
        capacity: Positions per row, as of a plain model; twins get room for the negative prompt.
    """

    def __init__(self, model: LanguageModel, guidance: Guidance, batch_size: int, capacity: int) -> None:
        self.model = model
        self._guidance = guidance
        self._cached = plain_model(model, 2 * batch_size, capacity + len(guidance.negative_ids))
        self._leads = [0] * batch_size
        """Tokens by which each twin is longer than its row."""

    @property
    def seconds(self) -> float:
        """Time inside forward passes, output head included."""
        return self._cached.seconds

    @property
    def calls(self) -> int:
        """Number of forward passes."""
        return self._cached.calls

    def read(self, rows: list[list[int]]) -> Tensor:
        """Lets each row read its prompt and its twin the negative one, before anything else; see `CachedModel.read`."""
        negative = list(self._guidance.negative_ids)
        self._leads = [len(negative) - len(ids) for ids in rows]
        return self._mixed(self._cached.read(rows + [negative] * len(rows)))

    def forward(self, token_ids: Tensor) -> Tensor:
        """Runs rows and twins on the same new tokens in one pass; see `CachedModel.forward`."""
        return self._mixed(self._cached.forward(token_ids.repeat(2, 1)))

    def read_next(self, tokens: Tensor) -> Tensor:
        """Lets each row read and keep one token; see `CachedModel.read_next`."""
        return self._mixed(self._cached.read_next(tokens.repeat(2)))

    def own_logits(self, hidden: Tensor) -> Tensor:
        """Logits of mixed hidden states: those of the guided distribution, up to a constant."""
        return self._cached.own_logits(hidden)

    def watch(self, layers: Sequence[int]) -> TargetFeatures:
        """Keeps the states after so many layers, the rows' before their twins'; see `CachedModel.watch`."""
        assert isinstance(self._cached, CachedModel), "what is read again each time can't be rolled back"
        return self._cached.watch(layers)

    def advance(self, counts: list[int]) -> None:
        """Adds a number of tokens to each row's length; see `CachedModel.advance`."""
        self._cached.advance(counts * 2)

    def set_lengths(self, lengths: list[int]) -> None:
        """Rolls each row back to a length that it has had before."""
        twins = [length + lead for length, lead in zip(lengths, self._leads, strict=True)]
        self._cached.set_lengths(lengths + twins)

    def select(self, rows: list[int]) -> None:
        """Keeps only the given rows."""
        self._cached.select(rows + [len(self._leads) + row for row in rows])
        self._leads = [self._leads[row] for row in rows]

    def _mixed(self, hidden: Tensor) -> Tensor:
        return self._guidance.combine(*hidden.chunk(2))


TargetCache = CachedModel | GuidedModel | RecomputedModel
"""A target at work, with what it has read."""


def cached_model(model: LanguageModel, batch_size: int, capacity: int, guidance: Guidance | None = None) -> TargetCache:
    """A model with a cache, guided where there is guidance; arguments as of the classes."""
    if guidance is None:
        return plain_model(model, batch_size, capacity)
    return GuidedModel(model, guidance, batch_size, capacity)
