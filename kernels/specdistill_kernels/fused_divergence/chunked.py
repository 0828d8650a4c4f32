"""`fused_divergence`, a tile of rows at a time: by `closed_forms.py` in torch, or by the kernels of `fused.py`.

Forward already computes the gradients, scaled by the caller's weights. It keeps only the [tokens, hidden] and
[vocab, hidden] gradients and never multiplies the heads twice. Backward only scales them by the incoming scalar.
"""

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


class ChunkedDivergence(torch.autograd.Function):
    """The autograd function behind `fused_divergence`, with the same inputs and outputs."""

    @staticmethod
    def forward(
        ctx,
        draft_hidden,
        draft_weight,
        target_hidden,
        target_weight,
        weights,
        labels,
        soft_labels,
        target_rows,
        settings: Settings,
    ):
        tokens = draft_hidden.shape[0]
        per_token = torch.zeros(tokens, dtype=torch.float32, device=draft_hidden.device)
        fill = float("nan") if target_hidden is None and soft_labels is None else 0.0
        statistics = torch.full((3, tokens), fill, dtype=torch.float32, device=draft_hidden.device)
        need_hidden, need_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(draft_hidden) if need_hidden else None
        head = draft_weight[: settings.vocab_size]
        # float32 whatever the head's dtype: bf16 sums over many tiles lose 4 to 23 % of the gradient.
        grad_weight = torch.zeros(draft_weight.shape, dtype=_wide(head), device=head.device) if need_weight else None
        idle = None
        if settings.static_shapes:
            idle = weights == 0
            active = torch.arange(tokens, device=weights.device)
        else:
            active = weights.nonzero()[:, 0]
        if target_rows is not None:
            # Tokens that share a row of the target lie in one tile, which multiplies the target's head once for them.
            active = active[target_rows[active].argsort(stable=True)]
        for rows in active.split(settings.tile_rows):

            def take(tensor: Tensor, filler: float = 0, rows: Tensor = rows) -> Tensor:
                # Idle tokens may hold anything, and 0 times NaN is NaN.
                return tensor[rows] if idle is None else _masked(tensor[rows], idle[rows], filler)

            hidden = take(draft_hidden)
            soft = None
            if soft_labels is not None:
                soft = SoftLabels(take(soft_labels.token_ids), take(soft_labels.log_probs, -torch.inf))
            target = None
            if target_hidden is not None and target_rows is not None:
                distinct, places = target_rows[rows].unique(return_inverse=True)
                target = TileTarget(target_hidden[distinct], target_weight, places)
            elif target_hidden is not None:
                target = TileTarget(take(target_hidden), target_weight, None)
            value, grad, tile_statistics = (_fused_tile if settings.fused else _torch_tile)(
                hidden,
                head,
                target,
                None if labels is None else take(labels),
                soft,
                weights[rows],
                settings,
                need_hidden or need_weight,
            )
            if idle is not None:
                value = value.masked_fill(idle[rows], 0)
                if tile_statistics is not None:
                    tile_statistics = _masked(tile_statistics.T, idle[rows], fill).T
            per_token[rows] = value.float()
            if tile_statistics is not None:
                statistics[:, rows] = tile_statistics.float()
            if grad is None:
                continue
            if grad_hidden is not None:
                grad_hidden[rows] = (grad.to(head.dtype) @ head).to(grad_hidden.dtype)
            if grad_weight is not None and settings.fused:
                _add_weight_gradient(grad_weight, grad, hidden.to(head.dtype))
            elif grad_weight is not None:
                grad_weight[: len(head)].addmm_(grad.T, hidden.to(grad.dtype))
            del grad  # It would stay in memory next to both of the next tile's logits.
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(draft_weight.dtype))
        ctx.mark_non_differentiable(per_token, statistics)
        loss = (per_token[active].double() * weights[active].double()).sum()
        return loss.to(_wide(head)), per_token, statistics

    @staticmethod
    def backward(ctx, grad_loss, *_unused):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        # The usual case: no copy of the head's size is made. On a GPU, reading the number would wait for the device.
        if type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss == 1:
            return grad_hidden, grad_weight, *(None,) * 7
        return (
            None if grad_hidden is None else grad_hidden * grad_loss,
            None if grad_weight is None else grad_weight * grad_loss,
            *(None,) * 7,
        )


def _torch_tile(
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
    """As `_torch_tile`, from the logits after their soft caps and before the temperature."""
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


def _fused_tile(
    hidden: Tensor,
    head: Tensor,
    target: TileTarget | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_torch_tile`; the gradient has the head's dtype and overwrites the logits."""
    from specdistill_kernels.fused_divergence.fused import divergence_tile

    assert soft_labels is None, "soft labels run in torch"
    logits, target_logits, places = hidden.to(head.dtype) @ head.T, None, None
    if target is not None:
        assert target.head is not None, "log-probabilities run in torch"
        target_logits, places = target.hidden.to(target.head.dtype) @ target.head.T, target.places
    value, statistics = divergence_tile(
        logits,
        target_logits,
        labels,
        weights,
        settings.kind.name,
        settings.beta,
        settings.eta,
        settings.temperature,
        settings.draft_softcap,
        settings.target_softcap,
        need_grad,
        places,
    )
    return value, logits, statistics


def _add_weight_gradient(out: Tensor, grad: Tensor, hidden: Tensor) -> None:
    from specdistill_kernels.fused_divergence.fused import add_weight_gradient

    add_weight_gradient(out, grad, hidden)


def _masked(rows: Tensor, mask: Tensor, filler: float) -> Tensor:
    return rows.masked_fill(mask[:, None] if rows.ndim == 2 else mask, filler)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scores(hidden: Tensor, head: Tensor | None, softcap: float | None) -> Tensor:
    # A trimmed target brings its log-probabilities along.
    scores = hidden if head is None else (hidden.to(head.dtype) @ head.T).to(_wide(head))
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
