"""Value and gradient of every divergence for a tile of rows, in closed form, in torch.

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
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from specdistill_kernels.fused_divergence.kinds import DivergenceKind, check_one_per_kind


class Rows(NamedTuple):
    """Target's and draft's probabilities of a tile of rows, and the formula's settings."""

    log_p: Tensor
    """[rows, vocab], like log_q, p and q."""
    log_q: Tensor
    p: Tensor
    q: Tensor
    alpha: Tensor
    """sum_v min(p, q), [rows]."""
    beta: float
    eta: float
    need_grad: bool
    trimmed: bool = False
    """Whether the last column is an outcome that the draft never says."""


ValueAndGradient = tuple[Tensor, Tensor | None]
"""Value [rows], and the gradient of the draft's logits [rows, vocab] where it is needed."""


def from_target(kind: DivergenceKind, rows: Rows) -> ValueAndGradient:
    """Computes a divergence that compares with the target's distribution."""
    return _FROM_TARGET[kind.name](rows)


def from_labels(kind: DivergenceKind, log_q: Tensor, q: Tensor, labels: Tensor, need_grad: bool) -> ValueAndGradient:
    """Computes a divergence from labels, int64 [rows], and the draft's log_q and q, [rows, vocab]."""
    return _FROM_LABELS[kind.name](log_q, q, labels, need_grad)


def _cross_entropy(log_q: Tensor, q: Tensor, labels: Tensor, need_grad: bool) -> ValueAndGradient:
    value = -log_q.gather(1, labels[:, None])[:, 0]
    if not need_grad:
        return value, None
    return value, q.scatter_add(1, labels[:, None], torch.full_like(value, -1.0)[:, None])


def _fkl(rows: Rows) -> ValueAndGradient:
    if rows.trimmed:
        return _trimmed_fkl(rows)
    # Terms of probability 0 are 0 by continuity, here and below.
    value = torch.where(rows.p > 0, rows.p * (rows.log_p - rows.log_q), 0).sum(-1)
    return value, rows.q - rows.p if rows.need_grad else None


def _trimmed_fkl(rows: Rows) -> ValueAndGradient:
    """The terms of the outcomes that the draft can say. Their p sums to less than 1, which scales q's part."""
    log_p, log_q, p, q = (part[:, :-1] for part in (rows.log_p, rows.log_q, rows.p, rows.q))
    value = torch.where(p > 0, p * (log_p - log_q), 0).sum(-1)
    if not rows.need_grad:
        return value, None
    return value, torch.nn.functional.pad(q * p.sum(-1, keepdim=True) - p, (0, 1))


def _rkl(rows: Rows) -> ValueAndGradient:
    ratio = torch.where(rows.q > 0, rows.log_q - rows.log_p, 0)
    value = (rows.q * ratio).sum(-1)
    return value, rows.q * (ratio - value[:, None]) if rows.need_grad else None


def _jeffreys(rows: Rows) -> ValueAndGradient:
    forward, forward_grad = _fkl(rows)
    reverse, reverse_grad = _rkl(rows)
    if forward_grad is None or reverse_grad is None:
        return forward + reverse, None
    return forward + reverse, forward_grad + reverse_grad


def _log_mixture(rows: Rows) -> Tensor:
    """log m, with m = beta p + (1 - beta) q."""
    return (rows.beta * rows.p + (1 - rows.beta) * rows.q).log()


def _jsd(rows: Rows) -> ValueAndGradient:
    beta, log_m = rows.beta, _log_mixture(rows)
    draft_term = torch.where(rows.q > 0, rows.log_q - log_m, 0)
    draft_kl = (rows.q * draft_term).sum(-1)
    value = beta * torch.where(rows.p > 0, rows.p * (rows.log_p - log_m), 0).sum(-1) + (1 - beta) * draft_kl
    return value, (1 - beta) * rows.q * (draft_term - draft_kl[:, None]) if rows.need_grad else None


def _skewed_kl(rows: Rows) -> ValueAndGradient:
    log_m = _log_mixture(rows)
    value = torch.where(rows.p > 0, rows.p * (rows.log_p - log_m), 0).sum(-1)
    if not rows.need_grad:
        return value, None
    # Where both are 0 the ratio is 0 / 0, and the id's gradient is 0 anyway.
    share = torch.where(rows.q > 0, rows.q * (rows.log_p - log_m).exp(), 0)
    return value, (1 - rows.beta) * (rows.q * share.sum(-1, keepdim=True) - share)


def _alpha_gradient(rows: Rows) -> Tensor:
    """A_v of the table, [rows, vocab]."""
    below = torch.where(rows.q < rows.p, rows.q, 0)
    return below - rows.q * below.sum(-1, keepdim=True)


def _tvd(rows: Rows) -> ValueAndGradient:
    return 1 - rows.alpha, -_alpha_gradient(rows) if rows.need_grad else None


def _lk_alpha(rows: Rows) -> ValueAndGradient:
    return -rows.alpha.log(), -_alpha_gradient(rows) / rows.alpha[:, None] if rows.need_grad else None


def _lk_lambda(rows: Rows) -> ValueAndGradient:
    forward, forward_grad = _fkl(rows)
    weight = (-rows.eta * rows.alpha).exp()
    value = weight * forward + (1 - weight) * (1 - rows.alpha)
    if forward_grad is None:
        return value, None
    return value, weight[:, None] * forward_grad - (1 - weight)[:, None] * _alpha_gradient(rows)


def _lk_argmax(rows: Rows) -> ValueAndGradient:
    log_overlap = (rows.log_p + rows.log_q).logsumexp(-1)
    if not rows.need_grad:
        return -log_overlap, None
    return -log_overlap, rows.q - (rows.log_p + rows.log_q - log_overlap[:, None]).exp()


_FROM_TARGET: Mapping[str, Callable[[Rows], ValueAndGradient]] = {
    "fkl": _fkl,
    "rkl": _rkl,
    "jsd": _jsd,
    "jeffreys": _jeffreys,
    "skewed_kl": _skewed_kl,
    "tvd": _tvd,
    "lk_alpha": _lk_alpha,
    "lk_lambda": _lk_lambda,
    "lk_argmax": _lk_argmax,
}
_FROM_LABELS: Mapping[str, Callable[[Tensor, Tensor, Tensor, bool], ValueAndGradient]] = {"ce": _cross_entropy}
check_one_per_kind(_FROM_TARGET, _FROM_LABELS)
