"""Attention masks of a batch whose rows have different lengths, for every kind of attention that hides by position."""

from __future__ import annotations

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
    keys = torch.arange(extent, device=positions.device)[None, :]
    return masks_by_kind(config, positions, keys, keys[:, None, :] > positions[:, :, None], dtype)


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
    return masks_by_kind(config, positions, keys[None], others | (keys > positions[:, :, None]), dtype)


def masks_by_kind(
    config: PretrainedConfig, positions: Tensor, keys: Tensor, later: Tensor, dtype: torch.dtype
) -> Tensor | dict[str, Tensor | None]:
    """Additive masks from what no layer may see, with each kind's window or chunk.

    Args:
        config: Names the kinds of attention, the window and the chunk size.
        positions: int64 [batch, new], of the new tokens.
        keys: int64 [batch or 1, keys], positions of everything that is kept.
        later: bool [batch, new, keys], pairs that no kind of attention sees.
        dtype: dtype of the mask.

    Returns:
        As `ragged_masks`.
    """
    kinds = kinds_of_masks(config)
    masks = {kind: _additive(_unseen(kind, config, positions, keys, later), dtype) for kind in kinds}
    if len(masks) == 1:
        # Families with one kind of attention take a plain mask, whatever they call the kind.
        return masks[kinds[0]]
    return {**masks, **dict.fromkeys(_STATES)}


def _unseen(kind: str, config: PretrainedConfig, positions: Tensor, keys: Tensor, later: Tensor) -> Tensor:
    """Pairs that attention of a kind must not see, bool [batch, new, keys]."""
    # Comparisons of positions, not of distances: int64 distances would be 8 bytes per pair of tokens.
    latest, at = positions[:, :, None], keys[:, None, :]
    if kind == "sliding_attention" and config.sliding_window is not None:
        return later | (at <= latest - config.sliding_window)
    if kind == "chunked_attention":
        return later | (at < latest - latest % config.attention_chunk_size)
    return later


def _additive(unseen: Tensor, dtype: torch.dtype) -> Tensor:
    # Eager and sdpa attention both accept an additive mask [batch, 1, new, keys] as it is.
    mask = torch.zeros(unseen.shape, dtype=dtype, device=unseen.device)
    return mask.masked_fill_(unseen, torch.finfo(dtype).min)[:, None]
