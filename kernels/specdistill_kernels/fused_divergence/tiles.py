"""One tile of rows of `fused_divergence` in torch: value, gradient of the draft's logits and statistics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specdistill_kernels.fused_divergence import closed_forms
from specdistill_kernels.fused_divergence.kinds import DivergenceKind

_LEAST_REST = 1e-6  # Of the ids that soft labels leave out; see `_soft_tile`.
_BLOCK_ENTRIES = 2**17
"""Logits per thread that a CPU handles at a time: the dozen temporaries of so small a block stay in a core's cache."""


class Settings(NamedTuple):
    """The arguments of `fused_divergence` that are not tensors."""

    kind: DivergenceKind
    beta: float
    eta: float
    temperature: float
    vocab_size: int
    draft_softcap: float | None
    target_softcap: float | None
    tile_rows: int
    fused: bool
    """Whether a tile is the Triton kernels' work."""
    static_shapes: bool
    """Whether tokens of weight 0 are computed like all others and then masked."""
    trimmed: bool = False
    """Whether the target comes as log-probabilities of the draft's ids and one more outcome, which it never says."""


class SoftLabels(NamedTuple):
    """A target's distribution as its K likeliest ids; the remaining probability lies somewhere on the other ids."""

    token_ids: Tensor
    """int64 [tokens, K], no id twice in a row."""
    log_probs: Tensor
    """[tokens, K], any float dtype: logarithms of their probabilities, at the temperature of the loss. -inf marks an
    empty place in a row with fewer than K ids; the id there counts as one of the other ids."""


class TileTarget(NamedTuple):
    """The target of one tile, whose rows may share some of it."""

    hidden: Tensor
    """[distinct rows, hidden]; log-probabilities where there is no head."""
    head: Tensor | None
    places: Tensor | None
    """int64 [rows]: the row of `hidden` that each of the tile is compared with; None for its own."""


def torch_tile(
    hidden: Tensor,
    head: Tensor,
    target: TileTarget | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value [rows], scaled gradient of the draft's logits before soft cap and temperature, statistics [3, rows]."""
    scores = _scores(hidden, head, settings.draft_softcap)
    target_scores = None if target is None else _scores(target.hidden, target.head, settings.target_softcap)

    def target_of(block: slice) -> Tensor | None:
        if target is None or target_scores is None:
            return None
        return target_scores[block if target.places is None else target.places[block]]

    if scores.device.type != "cpu":
        return _tile_of_scores(scores, target_of(slice(None)), labels, soft_labels, weights, settings, need_grad)
    values, statistics = [], []
    rows = max(1, _BLOCK_ENTRIES * torch.get_num_threads() // scores.shape[1])
    for block in (slice(start, start + rows) for start in range(0, max(1, len(scores)), rows)):
        value, grad, block_statistics = _tile_of_scores(
            scores[block],
            target_of(block),
            None if labels is None else labels[block],
            None if soft_labels is None else SoftLabels(*(tensor[block] for tensor in soft_labels)),
            weights[block],
            settings,
            need_grad,
        )
        values.append(value)
        statistics.append(block_statistics)
        if grad is not None:
            # Overwrites its logits, which nothing needs any more.
            scores[block] = grad
    return (
        torch.cat(values),
        scores if need_grad else None,
        None if statistics[0] is None else torch.cat(statistics, 1),
    )


def _tile_of_scores(
    scores: Tensor,
    target_scores: Tensor | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `torch_tile`, from the logits after their soft caps and before the temperature."""
    draft_logits = scores / settings.temperature
    if soft_labels is not None:
        value, grad, statistics = _soft_tile(draft_logits, soft_labels, settings, need_grad)
    elif settings.trimmed:
        value, grad, statistics = _trimmed_tile(draft_logits, target_scores, labels, settings, need_grad)
    else:
        target_logits = None if target_scores is None else target_scores / settings.temperature
        value, grad, statistics = _tile(draft_logits, target_logits, labels, settings, need_grad)
    if grad is not None:
        grad *= (weights.to(grad.dtype) / settings.temperature)[:, None]
        if settings.draft_softcap is not None:
            grad *= 1 - (scores / settings.draft_softcap) ** 2
    return value, grad, statistics


def _soft_tile(
    draft_logits: Tensor, soft: SoftLabels, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `_tile`, over K + 1 outcomes: the given ids, and all others as one, whose logit is their log-sum-exp.

    A given id takes its outcome's whole gradient. The others share theirs by q_v / q_tail.
    """
    own = draft_logits.gather(1, soft.token_ids)
    log_p = soft.log_probs.to(draft_logits.dtype)
    # The id of an empty place stays among the others. Its outcome has probability 0 for target and draft.
    empty = log_p == -torch.inf
    top = own.masked_fill(empty, -torch.inf)
    others = draft_logits.scatter(1, soft.token_ids, own.masked_fill(~empty, -torch.inf))
    tail = others.logsumexp(-1, keepdim=True)
    # The probability that the K ids leave. If it is lost in the rounding of their sum, 0 would make rkl infinite for a
    # draft that gives other ids some probability. If no other ids exist, anything above 0 would make fkl infinite.
    left = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=_LEAST_REST)
    left = left.log().masked_fill(tail == -torch.inf, -torch.inf)
    value, grad, statistics = _tile(torch.cat([top, tail], 1), torch.cat([log_p, left], 1), None, settings, need_grad)
    if grad is not None:
        share = torch.where(others > -torch.inf, (others - tail).exp(), 0)
        shared = share * grad[:, -1:]
        grad = shared.scatter(1, soft.token_ids, torch.where(empty, shared.gather(1, soft.token_ids), grad[:, :-1]))
    return value, grad, statistics


def _trimmed_tile(
    own: Tensor, log_p: Tensor | None, labels: Tensor | None, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `_tile`, with an outcome more, which the draft never says."""
    logits = torch.cat((own, torch.full_like(own[:, :1], -torch.inf)), 1)
    value, grad, statistics = _tile(logits, log_p, labels, settings, need_grad)
    return value, None if grad is None else grad[:, :-1], statistics


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which a tensor's sums are formed."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scores(hidden: Tensor, head: Tensor | None, softcap: float | None) -> Tensor:
    # A trimmed target brings its log-probabilities along.
    scores = hidden if head is None else (hidden.to(head.dtype) @ head.T).to(wide(head))
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _tile(
    draft_logits: Tensor, target_logits: Tensor | None, labels: Tensor | None, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value [rows], gradient of the draft's logits [rows, vocab], statistics [3, rows]: alpha, agreement, entropy."""
    kind = settings.kind
    log_q = draft_logits.log_softmax(-1)
    q = log_q.exp()
    if target_logits is None:
        assert labels is not None, "checked by fused_divergence"
        return *closed_forms.from_labels(kind, log_q, q, labels, need_grad), None
    log_p = target_logits.log_softmax(-1)
    p = log_p.exp()
    alpha = torch.minimum(p, q).sum(-1)
    agreement = log_p.argmax(-1) == log_q.argmax(-1)
    # Terms of probability 0 are 0 by continuity.
    entropy = -torch.where(p > 0, p * log_p, 0).sum(-1)
    statistics = torch.stack([alpha, agreement.to(alpha.dtype), entropy])
    if kind.needs_target:
        rows = closed_forms.Rows(log_p, log_q, p, q, alpha, settings.beta, settings.eta, need_grad, settings.trimmed)
        return *closed_forms.from_target(kind, rows), statistics
    assert labels is not None, "checked by fused_divergence"
    return *closed_forms.from_labels(kind, log_q, q, labels, need_grad), statistics
