"""The draft that is an EAGLE-3 head: it reads hidden states of the target, and has a small cache of its own.

Row i of its cache belongs to position i of the text. It holds the token behind, x[i+1], and a feature of position i:
the target's, or in the later steps of a round what the head itself gave for the row before. A round begins with the
rows of all tokens that were kept since the last one, with the target's features; they overwrite the rows of guesses.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_kinds import ModelDraft, ModelDrafting
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal
from specdistill.decoding.generation import check_lengths
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.recomputed import RecomputedModel
from specdistill.decoding.sampling import Keys, Sampling
from specdistill.decoding.target_features import TargetFeatures
from specdistill.models.head_draft import HeadModel


class HeadDraft(ModelDraft):
    """A head that proposes one token per pass.

    Args:
        model: A head of the target that will be decoded.
    """

    def __init__(self, model: HeadModel) -> None:
        super().__init__(model)
        self._head = model

    def require_ready(self) -> None:
        """Its one layer of plain attention can be rolled back."""

    def begin(
        self, prompts: list[list[int]], max_new_tokens: int, room: int, sampling: Sampling, target: TargetCache
    ) -> HeadDrafting:
        check_lengths(prompts, max_new_tokens, self.model)
        return HeadDrafting(self._head, prompts, room, sampling, target)


class HeadDrafting(ModelDrafting):
    """A head at work."""

    def __init__(
        self, model: HeadModel, prompts: list[list[int]], room: int, sampling: Sampling, target: TargetCache
    ) -> None:
        self._cached = CachedHead(model, len(prompts), max(map(len, prompts)) + room, target)
        self._sampling = sampling

    def unread(self, texts: Sequence[list[int]]) -> int:
        return super().unread([text[1:] for text in texts])

    def propose(
        self, texts: Sequence[list[int]], limits: list[int], *, keys: Keys, length: DraftLength
    ) -> tuple[Proposal, list[int]]:
        following = [text[1:] for text in texts]
        proposal, counts = super().propose(following, limits, keys=keys, length=length)
        # Rows of guesses have no feature of the target's yet.
        read = zip(following, self._cached.lengths, strict=True)
        self._cached.set_lengths([min(len(text), count) for text, count in read])
        return proposal, counts

    def commit(self, texts: Sequence[list[int]]) -> None:
        """Nothing is left to drop: only rows of tokens that the target has read are kept."""


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
        self._head, self._target = model.head, target
        self._states: TargetFeatures = target.watch(model.head.aux_layers)
        self._own: Tensor | None = None
        """Features [batch, 1, hidden] of the next pass; None takes the target's."""

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
