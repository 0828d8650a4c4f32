"""`fused_divergence` with closed-form gradients, a tile of rows at a time: in torch, or by the kernels of `fused.py`.

With p = softmax(target), q = softmax(draft), z the draft's logits, alpha = sum_v min(p, q) and
A_v = q_v (1[q_v < p_v] - sum_u q_u 1[q_u < p_u]) = d alpha / d z_v:

    divergence   d / d z_v
    ce           q_v - 1[v = label]
    fkl          q_v - p_v
    rkl          q_v (log q_v - log p_v - rkl)
    jeffreys     the sum of fkl and rkl
    jsd          (1 - beta) q_v (log q_v - log m_v - KL(q || m))
    skewed_kl    (1 - beta) q_v (sum_u q_u p_u / m_u - p_v / m_v)
    tvd          -A_v
    lk_alpha     -A_v / alpha
    lk_lambda    w (q_v - p_v) - (1 - w) A_v,   w = exp(-eta alpha)
    lk_argmax    q_v (1 - p_v / sum_u p_u q_u)

Forward forms the gradients already, scaled by the caller's weights: then nothing but [tokens, hidden] and [vocab,
hidden] is kept, and the heads are not multiplied a second time. Backward only scales them by the incoming scalar.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_REST = 1e-6
_BLOCK_ENTRIES = 2**17
"""Of a tile of a CPU's, per thread: the dozen temporaries of a block stay in a core's cache. Of a whole tile each would
be memory that the system hands out anew, which took as long as the arithmetic."""


class Settings(NamedTuple):
    """The arguments of `fused_divergence` that are not tensors."""

    kind: str
    beta: float
    eta: float
    temperature: float
    vocab_size: int
    draft_softcap: float | None
    target_softcap: float | None
    tile_rows: int
    fused: bool
    """Whether a tile's statistics and gradient come from the Triton kernels."""
    static_shapes: bool
    """Whether tokens of weight 0 are gone over like all others, and then masked."""


class SoftLabels(NamedTuple):
    """A target's distribution by its K likeliest ids; what they leave of 1 lies on the other ids, unknown how."""

    token_ids: Tensor
    """int64 [tokens, K], no id twice in a row."""
    log_probs: Tensor
    """[tokens, K], any float dtype: logarithms of their probabilities, at the temperature of the loss. -inf marks an
    empty place, for rows of fewer than K: its id counts among the others."""


class ChunkedDivergence(torch.autograd.Function):
    """See the module's docstring; inputs and outputs as in `fused_divergence`."""

    @staticmethod
    def forward(
        ctx, draft_hidden, draft_weight, target_hidden, target_weight, weights, labels, soft_labels, settings: Settings
    ):
        tokens = draft_hidden.shape[0]
        per_token = torch.zeros(tokens, dtype=torch.float32, device=draft_hidden.device)
        fill = float("nan") if target_hidden is None and soft_labels is None else 0.0
        statistics = torch.full((3, tokens), fill, dtype=torch.float32, device=draft_hidden.device)
        need_hidden, need_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
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
        for rows in active.split(settings.tile_rows):

            def rows_of(tensor: Tensor, filler: float = 0, rows: Tensor = rows) -> Tensor:
                # Nobody promised that idle tokens hold numbers or ids, and 0 times NaN is NaN.
                return tensor[rows] if idle is None else _masked(tensor[rows], idle[rows], filler)

            hidden = rows_of(draft_hidden)
            soft = None
            if soft_labels is not None:
                soft = SoftLabels(rows_of(soft_labels.token_ids), rows_of(soft_labels.log_probs, -torch.inf))
            value, grad, found = (_fused_tile if settings.fused else _torch_tile)(
                hidden,
                head,
                None if target_hidden is None else (rows_of(target_hidden), target_weight[: settings.vocab_size]),
                None if labels is None else rows_of(labels),
                soft,
                weights[rows],
                settings,
                need_hidden or need_weight,
            )
            if idle is not None:
                value = value.masked_fill(idle[rows], 0)
                found = None if found is None else _masked(found.T, idle[rows], fill).T
            per_token[rows] = value.float()
            if found is not None:
                statistics[:, rows] = found.float()
            if grad is None:
                continue
            if grad_hidden is not None:
                grad_hidden[rows] = (grad.to(head.dtype) @ head).to(grad_hidden.dtype)
            if grad_weight is not None and settings.fused:
                _add_weight_gradient(grad_weight, grad, hidden.to(head.dtype))
            elif grad_weight is not None:
                grad_weight[: settings.vocab_size].addmm_(grad.T, hidden.to(grad.dtype))
            # Else it would lie beside both of the next tile's logits.
            del grad
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(draft_weight.dtype))
        ctx.mark_non_differentiable(per_token, statistics)
        loss = (per_token[active].double() * weights[active].double()).sum()
        return loss.to(_wide(head)), per_token, statistics

    @staticmethod
    def backward(ctx, grad_loss, *_unused):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad_hidden, grad_weight = ctx.saved_tensors
        # The usual case, in which a copy of the head's size is saved. On a GPU a look at the number would wait for it.
        if type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss == 1:
            return grad_hidden, grad_weight, *(None,) * 6
        return (
            None if grad_hidden is None else grad_hidden * grad_loss,
            None if grad_weight is None else grad_weight * grad_loss,
            *(None,) * 6,
        )


def _torch_tile(
    hidden: Tensor,
    head: Tensor,
    target: tuple[Tensor, Tensor] | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value [rows], scaled gradient of the draft's logits as the head gave them, statistics [3, rows]."""
    scores = _scores(hidden, head, settings.draft_softcap)
    target_scores = None if target is None else _scores(*target, settings.target_softcap)
    if scores.device.type != "cpu":
        return _of_scores(scores, target_scores, labels, soft_labels, weights, settings, need_grad)
    values, statistics = [], []
    rows = max(1, _BLOCK_ENTRIES * torch.get_num_threads() // scores.shape[1])
    for start in range(0, max(1, len(scores)), rows):
        block = slice(start, start + rows)
        value, grad, found = _of_scores(
            scores[block],
            None if target_scores is None else target_scores[block],
            None if labels is None else labels[block],
            None if soft_labels is None else SoftLabels(*(each[block] for each in soft_labels)),
            weights[block],
            settings,
            need_grad,
        )
        values.append(value)
        statistics.append(found)
        if grad is not None:
            # In the place of its logits, which nothing needs any more.
            scores[block] = grad
    return (
        torch.cat(values),
        scores if need_grad else None,
        None if statistics[0] is None else torch.cat(statistics, 1),
    )


def _of_scores(
    scores: Tensor,
    target_scores: Tensor | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `_torch_tile`, from the logits as the heads and their soft caps gave them."""
    draft_logits = scores / settings.temperature
    if soft_labels is not None:
        value, grad, found = _soft_tile(draft_logits, soft_labels, settings, need_grad)
    else:
        target_logits = None if target_scores is None else target_scores / settings.temperature
        value, grad, found = _tile(draft_logits, target_logits, labels, settings, need_grad)
    if grad is not None:
        grad *= (weights.to(grad.dtype) / settings.temperature)[:, None]
        if settings.draft_softcap is not None:
            grad *= 1 - (scores / settings.draft_softcap) ** 2
    return value, grad, found


def _soft_tile(
    draft_logits: Tensor, soft: SoftLabels, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """As `_tile`, over K + 1 outcomes: the given ids, and all others as one, whose logit is their log-sum-exp.

    An outcome's gradient goes to its ids by their share of it: to a given id whole, to the others as q_v / q_tail.
    """
    own = draft_logits.gather(1, soft.token_ids)
    log_p = soft.log_probs.to(draft_logits.dtype)
    # Empty places: their ids stay among the others, and the outcome they would be is impossible for both.
    empty = log_p == -torch.inf
    top = own.masked_fill(empty, -torch.inf)
    others = draft_logits.scatter(1, soft.token_ids, own.masked_fill(~empty, -torch.inf))
    tail = others.logsumexp(-1, keepdim=True)
    # What the K leave. Where it drowns in the rounding of their sum, 0 would put a draft that thinks of other ids
    # infinitely far (rkl); where there are no other ids, anything above 0 would do so (fkl).
    left = (1 - log_p.exp().sum(-1, keepdim=True)).clamp(min=_LEAST_REST)
    left = left.log().masked_fill(tail == -torch.inf, -torch.inf)
    value, grad, found = _tile(torch.cat([top, tail], 1), torch.cat([log_p, left], 1), None, settings, need_grad)
    if grad is not None:
        share = torch.where(others > -torch.inf, (others - tail).exp(), 0)
        shared = share * grad[:, -1:]
        grad = shared.scatter(1, soft.token_ids, torch.where(empty, shared.gather(1, soft.token_ids), grad[:, :-1]))
    return value, grad, found


def _fused_tile(
    hidden: Tensor,
    head: Tensor,
    target: tuple[Tensor, Tensor] | None,
    labels: Tensor | None,
    soft_labels: SoftLabels | None,
    weights: Tensor,
    settings: Settings,
    need_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `_torch_tile`, with the gradient in the head's dtype where the logits were."""
    from specdistill_kernels.fused_divergence.fused import divergence_tile

    assert soft_labels is None, "soft labels run in torch"
    logits = hidden.to(head.dtype) @ head.T
    target_logits = None if target is None else target[0].to(target[1].dtype) @ target[1].T
    value, statistics = divergence_tile(
        logits,
        target_logits,
        labels,
        weights,
        settings.kind,
        settings.beta,
        settings.eta,
        settings.temperature,
        settings.draft_softcap,
        settings.target_softcap,
        need_grad,
    )
    return value, logits, statistics


def _add_weight_gradient(out: Tensor, grad: Tensor, hidden: Tensor) -> None:
    from specdistill_kernels.fused_divergence.fused import add_weight_gradient

    add_weight_gradient(out, grad, hidden)


def _masked(rows: Tensor, mask: Tensor, filler: float) -> Tensor:
    return rows.masked_fill(mask[:, None] if rows.ndim == 2 else mask, filler)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _scores(hidden: Tensor, head: Tensor, softcap: float | None) -> Tensor:
    scores = (hidden.to(head.dtype) @ head.T).to(_wide(head))
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _tile(
    draft_logits: Tensor, target_logits: Tensor | None, labels: Tensor | None, settings: Settings, need_grad: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Value [rows], gradient of the draft's logits [rows, vocab]; [3, rows]: alpha, argmax agreement, entropy of p."""
    kind = settings.kind
    log_q = draft_logits.log_softmax(-1)
    q = log_q.exp()
    if target_logits is None:
        return *_cross_entropy(log_q, q, labels, need_grad), None
    log_p = target_logits.log_softmax(-1)
    p = log_p.exp()
    alpha = torch.minimum(p, q).sum(-1)
    agreement = log_p.argmax(-1) == log_q.argmax(-1)
    # Terms of probability 0 are 0 by continuity.
    entropy = -torch.where(p > 0, p * log_p, 0).sum(-1)
    statistics = torch.stack([alpha, agreement.to(alpha.dtype), entropy])
    if kind == "ce":
        return *_cross_entropy(log_q, q, labels, need_grad), statistics
    value, grad = torch.zeros_like(alpha), None
    if kind in ("fkl", "jeffreys", "lk_lambda"):
        value = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
        grad = q - p if need_grad else None
    if kind in ("rkl", "jeffreys"):
        ratio = torch.where(q > 0, log_q - log_p, 0)
        reverse = (q * ratio).sum(-1)
        value = value + reverse
        if need_grad:
            reverse_grad = q * (ratio - reverse[:, None])
            grad = reverse_grad if grad is None else grad + reverse_grad
    elif kind == "jsd":
        beta = settings.beta
        log_m = (beta * p + (1 - beta) * q).log()
        draft_term = torch.where(q > 0, log_q - log_m, 0)
        draft_kl = (q * draft_term).sum(-1)
        value = beta * torch.where(p > 0, p * (log_p - log_m), 0).sum(-1) + (1 - beta) * draft_kl
        grad = (1 - beta) * q * (draft_term - draft_kl[:, None]) if need_grad else None
    elif kind == "skewed_kl":
        beta = settings.beta
        log_m = (beta * p + (1 - beta) * q).log()
        value = torch.where(p > 0, p * (log_p - log_m), 0).sum(-1)
        if need_grad:
            # Where both are 0 the ratio is 0 / 0, and the id's gradient is 0 anyway.
            share = torch.where(q > 0, q * (log_p - log_m).exp(), 0)
            grad = (1 - beta) * (q * share.sum(-1, keepdim=True) - share)
    elif kind == "lk_argmax":
        log_overlap = (log_p + log_q).logsumexp(-1)
        value = -log_overlap
        grad = q - (log_p + log_q - log_overlap[:, None]).exp() if need_grad else None
    elif kind in ("tvd", "lk_alpha", "lk_lambda"):
        overlap_grad = None
        if need_grad:
            below = torch.where(q < p, q, 0)
            overlap_grad = below - q * below.sum(-1, keepdim=True)
        if kind == "tvd":
            value, grad = 1 - alpha, None if overlap_grad is None else -overlap_grad
        elif kind == "lk_alpha":
            value, grad = -alpha.log(), None if overlap_grad is None else -overlap_grad / alpha[:, None]
        else:
            weight = (-settings.eta * alpha).exp()
            value = weight * value + (1 - weight) * (1 - alpha)
            if grad is not None and overlap_grad is not None:
                grad = weight[:, None] * grad - (1 - weight)[:, None] * overlap_grad
    return value, grad, statistics


def _cross_entropy(log_q: Tensor, q: Tensor, labels: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor | None]:
    assert labels is not None, "checked by fused_divergence"
    value = -log_q.gather(1, labels[:, None])[:, 0]
    if not need_grad:
        return value, None
    return value, q.scatter_add(1, labels[:, None], torch.full_like(value, -1.0)[:, None])
