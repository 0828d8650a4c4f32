"""A head with a ragged cache of its own, which reads hidden states of the target.

Row i of its cache belongs to position i of the text. It holds the token behind, x[i+1], and a feature of position i:
the target's, or in the later steps of a round what the head itself gave for the row before. A round begins with the
rows of all tokens that were kept since the last one, with the target's features; they overwrite the rows of guesses.
"""

from __future__ import annotations

from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.recomputed import RecomputedModel
from specdistill.decoding.target_features import TargetFeatures
from specdistill.models.head_draft import HeadModel


class CachedHead(CachedModel):
    """A head and its cache. Hidden states are what the head gives: features of the next step.

    Args:
        model: The head.
        batch_size: Number of rows.
        capacity: Positions of each row.
        target: The target's cache, which has read nothing yet.
    """

    def __init__(self, model: HeadModel, batch_size: int, capacity: int, target: TargetCache) -> None:
        super().__init__(model, batch_size, capacity)
        assert not isinstance(target, RecomputedModel), "what is read again each time can't be rolled back"
        self._head = model.head
        self._states: TargetFeatures = target.watch(model.head.aux_layers)
        self._own: Tensor | None = None
        """Features [batch, 1, hidden] of the next pass; None takes the target's."""

    def forward_with(self, token_ids: Tensor, *, states: bool) -> Tensor:
        """Runs new tokens as `forward` does, with features of one kind; for timing, since nothing is kept.

        Args:
            token_ids: int64 [batch, new]; one token where `states` is False.
            states: Whether features come from the target's states, or from the last pass.
        """
        own = self._own
        self._own = None if states else own
        hidden = self.forward(token_ids)
        self._own = own
        return hidden

    def read(self, rows: list[list[int]]) -> Tensor:
        """Reads tokens with the target's features, which must all be there; see `CachedModel.read`."""
        self._own = None
        hidden = super().read(rows)
        self._own = hidden[:, None]
        return hidden

    def read_next(self, tokens: Tensor) -> Tensor:
        """Reads a token with the features that the last pass gave; see `CachedModel.read_next`."""
        hidden = super().read_next(tokens)
        self._own = hidden[:, None]
        return hidden

    def _run(
        self,
        token_ids: Tensor,
        positions: Tensor,
        masks: Tensor | dict[str, Tensor | None] | None,
        row: int | None = None,
    ) -> Tensor:
        features = self._head.fuse(self._states.at(positions)) if self._own is None else self._own
        assert not isinstance(masks, dict), "one layer has one mask"
        return self._head(token_ids, features, positions, masks, self._cache)
