"""The draft that is an EAGLE-3 head: it reads hidden states of the target, and has a small cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.decoding.cached_head import CachedHead
from specdistill.decoding.draft_kinds import ModelDraft, ModelDrafting
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.drafting import Proposal
from specdistill.decoding.generation import check_lengths
from specdistill.decoding.guided_model import TargetCache
from specdistill.decoding.sampling import Keys, Sampling
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
