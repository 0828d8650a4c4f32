"""A divergence between target and draft from hidden states, without ever storing [tokens, vocab] logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdistill_kernels.backend import choose
from specdistill_kernels.fused_divergence.chunked import ChunkedDivergence
from specdistill_kernels.fused_divergence.kinds import DIVERGENCES, KINDS, DivergenceKind, find_kind
from specdistill_kernels.fused_divergence.tiles import Settings, SoftLabels
from specdistill_kernels.fused_divergence.trimmed import trimmed_log_probs

__all__ = [
    "DIVERGENCES",
    "KINDS",
    "DivergenceKind",
    "DivergenceOutput",
    "SoftLabels",
    "find_kind",
    "fused_divergence",
    "trimmed_log_probs",
]

_TILE_ENTRIES, _GPU_TILE_ENTRIES = 2**25, 2**26


class DivergenceOutput(NamedTuple):
    """The loss, and per-token statistics that cost nothing extra; no gradient flows through the statistics."""

    loss: Tensor
    """sum_t weights[t] * divergence[t], a scalar; backward gives the gradients of draft_hidden and draft_weight."""
    per_token: Tensor
    """The divergence of each token in nats (tvd: unitless), float32 [tokens]."""
    alpha: Tensor
    """sum_v min(p, q), float32 [tokens]; NaN where no target was given."""
    agreement: Tensor
    """1 where the two argmaxes agree, float32 [tokens]; NaN where no target was given."""
    target_entropy: Tensor
    """Entropy of p in nats, float32 [tokens]; NaN where no target was given."""


def fused_divergence(
    draft_hidden: Tensor,
    draft_weight: Tensor,
    target_hidden: Tensor | None,
    target_weight: Tensor | None,
    weights: Tensor,
    *,
    kind: str = "fkl",
    beta: float | None = None,
    eta: float = 3.0,
    temperature: float = 1.0,
    labels: Tensor | None = None,
    vocab_size: int | None = None,
    draft_softcap: float | None = None,
    target_softcap: float | None = None,
    tile_rows: int | None = None,
    backend: str = "auto",
    soft_labels: SoftLabels | None = None,
    static_shapes: bool = False,
    trimmed_target: Tensor | None = None,
    target_rows: Tensor | None = None,
) -> DivergenceOutput:
    """Computes `(weights * divergence(draft_hidden @ draft_weight.T, target_hidden @ target_weight.T)).sum()`.

    Logits exist for one tile of rows at a time, and the same pass computes their gradients. So memory grows with the
    tile, not with tokens x vocabulary. Tokens of weight 0 are skipped. Everything is accumulated in float32.

    Args:
        draft_hidden: [tokens, draft_hidden_size], after the final norm.
        draft_weight: [draft_vocab, draft_hidden_size], the output head (may be the tied embedding).
        target_hidden: [tokens, target_hidden_size]; None for `ce`.
        target_weight: [target_vocab, target_hidden_size]; None for `ce`. The target gets no gradient.
        weights: [tokens], each token's factor: 1 / (tokens in the accumulation window) gives the token mean.
        kind: One of `DIVERGENCES`; the formulas are in `kinds.KINDS`.
        beta: The target's weight in the mixture of `jsd` (default 0.5) and `skewed_kl` (0.1), in (0, 1). As beta -> 0
            `jsd` tends to beta * KL(target || draft), as beta -> 1 to (1 - beta) * KL(draft || target): divided by
            beta * (1 - beta) it runs continuously from `fkl` to `rkl`.
        eta: Sets how fast `lk_lambda` moves from `fkl` to `tvd` as the acceptance grows.
        temperature: Divides both models' logits before the softmax. The loss is not multiplied by its square.
        labels: int64 [tokens], for `ce` only.
        vocab_size: Number of real ids. Columns beyond it are padding and take no part. Default: the smaller head.
        draft_softcap, target_softcap: c in logits = c tanh(logits / c) where the model has one (Gemma 2).
        tile_rows: Rows at a time; by default as many as fit 2**25 logits (on a GPU 2**26).
        backend: `auto` (Triton on a GPU, else torch), `fused` or `torch`. `fused` keeps logits and their gradients in
            the heads' dtype; float64 and soft labels run in torch only.
        soft_labels: Replaces the target by its K likeliest ids with their log-probabilities, for any kind but `ce`. All
            other ids count as one outcome in divergence, alpha, agreement and entropy. Merging outcomes can only raise
            alpha and lower the divergence (except `lk_lambda`, whose weight depends on alpha).
        static_shapes: Also computes tokens of weight 0; their values, statistics and gradients are 0 all the same. Then
            nothing waits for the GPU and no shape depends on the data, as the capture of a CUDA graph requires.
        trimmed_target: [tokens, draft_vocab + 1], as by `trimmed_log_probs`: replaces the target where the draft's head
            lacks some ids, for any kind but `ce`. They are one outcome, which the draft never says. What that adds to
            `fkl` is infinite whatever the draft does, and left out. The draft's head takes part whole.
        target_rows: int64 [tokens], the row of the target (of whichever form) that each token is compared with; by
            default its own. Several tokens may share a row, which the target's head is multiplied with once. Rows are
            counted from 0; with static_shapes nobody looks whether they exist, as that would wait for the GPU.

    Returns:
        See `DivergenceOutput`.

    Raises:
        ValueError: Unknown kind, missing labels or target, or a setting outside its range.
        RuntimeError: `fused` was asked for where it can't run.

    Source: fkl, rkl, jsd: Agarwal et al. 2024 (arXiv 2306.13649); tvd: Zhou et al. 2024 (arXiv 2310.08461); skewed_kl:
    Ko et al. 2024 (arXiv 2402.03898); lk_alpha, lk_lambda: Samarin et al. 2026 (arXiv 2602.23881); lk_argmax: ours.
    """
    row = find_kind(kind)
    replaced = soft_labels is not None or trimmed_target is not None
    if not row.needs_target and labels is None:
        raise ValueError(f"the divergence {kind!r} needs labels")
    if soft_labels is not None and (not row.needs_target or target_hidden is not None):
        raise ValueError("soft_labels replace the target: leave out target_hidden, and choose another kind than 'ce'")
    if row.needs_target and not replaced and (target_hidden is None or target_weight is None):
        raise ValueError(f"the divergence {kind!r} needs target_hidden and target_weight, or soft_labels")
    if trimmed_target is not None:
        if not (row.needs_target and soft_labels is None and target_hidden is None):
            raise ValueError("trimmed_target replaces the target: leave out target_hidden, soft_labels and 'ce'")
        if trimmed_target.shape[1] != draft_weight.shape[0] + 1:
            raise ValueError("trimmed_target must have one column more than the draft's head has rows")
        if target_softcap is not None:
            raise ValueError("trimmed_target has the target's softcap already: give it to trimmed_log_probs, not here")
        target_hidden, target_weight, vocab_size = trimmed_target, None, None
    beta = row.default_beta if beta is None else beta
    if not 0 < beta < 1:
        raise ValueError(f"expected 0 < beta < 1, got {beta}; use kind='fkl' or kind='rkl' for the ends")
    if temperature <= 0:
        raise ValueError(f"expected temperature > 0, got {temperature}")
    if soft_labels is not None and soft_labels.token_ids.shape != soft_labels.log_probs.shape:
        raise ValueError("soft_labels must have as many ids as log-probabilities")
    target = target_hidden if soft_labels is None else soft_labels.token_ids
    if target_rows is not None:
        _check_rows(target_rows, None if target is None or static_shapes else len(target))
    compared, name = (target, "target_hidden") if target_rows is None else (target_rows, "target_rows")
    tokens = [draft_hidden.shape[0], weights.shape[0]] + ([] if compared is None else [compared.shape[0]])
    if len(set(tokens)) != 1:
        raise ValueError(f"draft_hidden, weights and {name} must have the same number of tokens, got {tokens}")
    widths = [draft_weight.shape[0]] + ([] if target_weight is None else [target_weight.shape[0]])
    width = vocab_size or min(widths)
    if width > min(widths):
        raise ValueError(f"vocab_size {width} is larger than a head of {min(widths)} rows")
    torch_only = replaced or draft_weight.dtype == torch.float64
    if torch_only and backend == "fused":
        raise RuntimeError(
            "backend 'fused' takes neither soft_labels nor float64 nor trimmed_target; use 'auto' or 'torch'"
        )
    fused = choose(backend, draft_weight) == "fused" and not torch_only
    entries = _GPU_TILE_ENTRIES if draft_weight.is_cuda else _TILE_ENTRIES
    rows_at_once = tile_rows or max(1, entries // width)
    settings = Settings(
        row,
        beta,
        eta,
        temperature,
        width,
        draft_softcap,
        target_softcap,
        rows_at_once,
        fused,
        static_shapes,
        trimmed_target is not None,
    )
    if target_rows is not None and (static_shapes or soft_labels is not None):
        # What is shared is small, or must not decide a shape.
        target_hidden = None if target_hidden is None else target_hidden[target_rows]
        soft_labels = None if soft_labels is None else SoftLabels(*(part[target_rows] for part in soft_labels))
        target_rows = None
    their_head = None if target_weight is None else target_weight[:width]
    loss, per_token, statistics = ChunkedDivergence.apply(  # pyright: ignore[reportGeneralTypeIssues]
        draft_hidden, draft_weight, target_hidden, their_head, weights, labels, soft_labels, target_rows, settings
    )
    return DivergenceOutput(loss, per_token, *statistics.unbind())


def _check_rows(target_rows: Tensor, rows: int | None) -> None:
    """Refuses `target_rows` that are no rows of a target with this many; None where that is not to be looked at.

    Raises:
        ValueError: Another shape or dtype, or a row out of range. Negative ones would count from the end unseen.
    """
    if target_rows.ndim != 1 or target_rows.dtype not in (torch.int64, torch.int32):
        kind = f"{target_rows.dtype} {list(target_rows.shape)}"
        raise ValueError(f"target_rows must be int64 [tokens], got {kind}")
    if rows is not None and bool(((target_rows < 0) | (target_rows >= rows)).any()):
        raise ValueError(f"target_rows must lie between 0 and {rows - 1}, the target's last row")
