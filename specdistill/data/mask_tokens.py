"""Mask tokens behind the real ones: how a parallel draft (PARD) learns to guess K tokens in one pass.

A pass of such a draft reads the text up to its newest token, the *anchor*, and K - 1 mask tokens at the positions that
follow. The anchor's row predicts the next token, the row of mask i the token i places further. Training puts the masks
of many anchors behind one text: mask i of anchor t stands at position t + i, sees the text up to t and the masks 1 to
i - 1 of its own anchor, and so gets the hidden state that a pass of its own would give it.

Source: An et al. 2025 (arXiv 2504.18583), with the conditional drop of section 3: an anchor that lost a mask has none
of the later ones, whose keys would be missing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskTokens:
    """Masks behind the rows of a batch. The first three are int64 [batch, masks], padded on the right."""

    anchors: Tensor
    """Position of the real token behind which each mask stands; 0 on padding."""
    depths: Tensor
    """Number of each mask behind its anchor, from 1; 0 on padding."""
    targets: Tensor
    """Token that each mask predicts, as a number among the batch's answer tokens; 0 on padding."""

    @property
    def real(self) -> Tensor:
        """bool [batch, masks], False on padding."""
        return self.depths > 0

    @property
    def predicted(self) -> Tensor:
        """int64 [real masks]: answer token that each mask predicts, in the order of `real`."""
        return self.targets[self.real]

    @property
    def predicted_depths(self) -> Tensor:
        """int64 [real masks]: how many tokens each mask looks ahead, from 2: the anchor's own row looks 1 ahead."""
        return self.depths[self.real] + 1

    def to(self, device: torch.device | str) -> MaskTokens:
        """Copy on another device."""
        return MaskTokens(*(tensor.to(device) for tensor in vars(self).values()))


def lay_out(prompt_lengths: Sequence[int], answer_lengths: Sequence[int], masks: Sequence[Sequence[int]]) -> MaskTokens:
    """Lays out the masks of a batch, anchor by anchor.

    Args:
        prompt_lengths: Tokens of each row's prompt, at least 1.
        answer_lengths: Tokens of each row's answer.
        masks: Number of masks behind the anchor of each answer token: the token before it. An anchor near the end has
            fewer than it is given, since a mask must predict a token of the answer.
    """
    rows: list[list[tuple[int, int, int]]] = []
    first = 0
    for prompt, answer, counts in zip(prompt_lengths, answer_lengths, masks, strict=True):
        rows.append(
            [
                (prompt - 1 + token, depth, first + token + depth)
                for token, count in enumerate(counts)
                for depth in range(1, min(count, answer - 1 - token) + 1)
            ]
        )
        first += answer
    table = torch.zeros(3, len(rows), max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        if row:
            table[:, number, : len(row)] = torch.tensor(row).T
    return MaskTokens(*table)


def every_mask(answer: int, num_tokens: int, anchors: Sequence[int] | None = None) -> tuple[int, ...]:
    """Number of masks behind the anchor of each answer token where nothing is dropped.

    Args:
        answer: Tokens of the answer.
        num_tokens: Tokens that the draft guesses per pass (K).
        anchors: Answer tokens whose anchors have masks; None takes all.
    """
    chosen = range(answer) if anchors is None else set(anchors)
    return tuple(min(num_tokens - 1, answer - 1 - token) if token in chosen else 0 for token in range(answer))


def drop_masks(masks: Sequence[int], keep: float, least: float, seed: str) -> tuple[int, ...]:
    """Drops masks so that each depth keeps a smaller share of them, and no mask without those before it.

    Of the masks i of all anchors the share max(keep ** i, least) stays, on average over seeds however few there are.

    Args:
        masks: Number of masks behind each anchor.
        keep: Share that each further depth keeps of the one before, in (0, 1].
        least: Share that every depth keeps at least.
        seed: Seed of the choice; the same one gives the same choice.

    Returns:
        Number of masks that each anchor keeps.
    """
    draw = random.Random(seed)
    order = [anchor for anchor, count in enumerate(masks) if count > 0]
    draw.shuffle(order)
    shift = draw.random()
    shares = [max(keep**depth, least) for depth in range(1, max(masks, default=0) + 1)]
    kept = [0] * len(masks)
    for rank, anchor in enumerate(order):
        # Evenly spread over [0, 1), and as likely anywhere: a share of less than one mask is one mask in some steps,
        # where rounding would leave the far guesses of short answers out of all of them.
        place = (rank + shift) / len(order)
        kept[anchor] = sum(place < share for share in shares[: masks[anchor]])
    return tuple(kept)
