"""Attention masks of a batch whose rows have different lengths, for every kind of attention that hides by position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdistill.models import families

_STATES = ("linear_attention", "conv", "moe", "mlp", "mamba")
"""Kinds of layers that no mask of pairs concerns."""
_HYBRID = {"hybrid": "full_attention", "hybrid_sliding": "sliding_attention"}
"""Kind of a layer that has both a state and attention -> the kind of its attention."""


def kinds_of_masks(config: PretrainedConfig) -> list[str]:
    """Kinds of attention that differ in what they hide."""
    kinds = {_HYBRID.get(kind, kind) for kind in families.attention_kinds(config)}
    return sorted(kinds.difference(_STATES)) or ["full_attention"]


def ragged_masks(
    config: PretrainedConfig, positions: Tensor, extent: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None]:
    """Additive masks [batch, 1, new, keys] of new tokens against everything that is kept.

    Args:
        config: Names the kinds of attention, the window and the chunk size.
        positions: int64 [batch, new], of the new tokens.
        extent: Number of keys.
        dtype: dtype of the mask.

    Returns:
        One mask, or where layers hide different pairs, one for each kind of layer; None for layers without attention.
    """
    keys = torch.arange(extent, device=positions.device)
    return _by_kind(config, lambda kind: _unseen(kind, config, positions, keys), dtype)


def branch_masks(
    config: PretrainedConfig, positions: Tensor, anchors: Tensor, kept: int, extent: int, dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None]:
    """Additive masks of new tokens that continue the same text behind different tokens, each in a branch of its own.

    Args:
        config: As for `ragged_masks`.
        positions: int64 [1, new], of the new tokens, which are written behind the text.
        anchors: int64 [1, new], position of the last token of the text that each new token sees. Tokens of one anchor
            are one branch: they see those of their own that come before.
        kept: Tokens of the text.
        extent: Number of keys.
        dtype: dtype of the mask.
    """
    new = positions.shape[1]
    keys = torch.arange(extent, device=positions.device)
    keys[kept : kept + new] = positions[0]
    others = anchors[:, :, None] < keys
    others[:, :, kept : kept + new] = anchors[:, :, None] != anchors[:, None]
    others[:, :, kept + new :] = True
    return _by_kind(config, lambda kind: _unseen(kind, config, positions, keys) | others, dtype)


def expanded_masks(
    config: PretrainedConfig, positions: Tensor, unseen: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None]:
    """Additive masks of tokens that are all read in one pass, some of them at the same positions.

    Args:
        config: As for `ragged_masks`.
        positions: int64 [batch, tokens].
        unseen: bool [batch, tokens, tokens], pairs that no kind of attention sees.
        dtype: dtype of the mask.
    """
    return _by_kind(config, lambda kind: _unseen(kind, config, positions, positions[:, None]) | unseen, dtype)


def _by_kind(
    config: PretrainedConfig, unseen: Callable[[str], Tensor], dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None]:
    kinds = kinds_of_masks(config)
    masks = {kind: _additive(unseen(kind), dtype) for kind in kinds}
    if len(masks) == 1:
        # Families with one kind of attention take a plain mask, whatever they call the kind.
        return masks[kinds[0]]
    return {**masks, **dict.fromkeys(_STATES)}


def _unseen(kind: str, config: PretrainedConfig, positions: Tensor, keys: Tensor) -> Tensor:
    """Pairs that attention must not see, bool [batch, new, keys].

    `keys` holds the keys' positions, [keys] or [batch, 1, keys].
    """
    # Comparisons of positions, not of distances: int64 distances would be 8 bytes per pair of tokens.
    latest = positions[:, :, None]
    unseen = keys > latest
    if kind == "sliding_attention" and config.sliding_window is not None:
        unseen.logical_or_(keys <= latest - config.sliding_window)
    elif kind == "chunked_attention":
        unseen.logical_or_(keys < latest - latest % config.attention_chunk_size)
    return unseen


def _additive(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    # Eager and sdpa attention both accept an additive mask [batch, 1, new, keys] as it is.
    mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
    return mask.masked_fill_(unseen, torch.finfo(dtype).min)[:, None]
