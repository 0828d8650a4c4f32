"""The definition of every divergence, in plain torch, differentiable by autograd. p is the target, q the draft."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from specdistill_kernels.fused_divergence.kinds import check_one_per_kind, find_kind


class _Rows(NamedTuple):
    """Target's and draft's probabilities and their logarithms, each [tokens, vocab], and the formula's settings."""

    log_p: Tensor
    log_q: Tensor
    p: Tensor
    q: Tensor
    beta: float
    eta: float


def divergence(
    draft_logits: Tensor,
    target_logits: Tensor | None,
    kind: str,
    *,
    beta: float | None = None,
    eta: float = 3.0,
    labels: Tensor | None = None,
) -> Tensor:
    """The divergence of each row, [tokens], from logits [tokens, vocab]. The formulas are in `kinds.KINDS`.

    Raises:
        ValueError: An unknown kind.
    """
    row = find_kind(kind)
    log_q = draft_logits.log_softmax(-1)
    if not row.needs_target:
        assert labels is not None, f"{kind} needs labels"
        return _FROM_LABELS[kind](log_q, labels)
    assert target_logits is not None, f"{kind} needs target_logits"
    log_p = target_logits.log_softmax(-1)
    beta = row.default_beta if beta is None else beta
    return _FROM_TARGET[kind](_Rows(log_p, log_q, log_p.exp(), log_q.exp(), beta, eta))


def _cross_entropy(log_q: Tensor, labels: Tensor) -> Tensor:
    return -log_q.gather(1, labels[:, None])[:, 0]


def _kl(weight: Tensor, log_weight: Tensor, log_other: Tensor) -> Tensor:
    """KL(weight || other); ids of probability 0 contribute 0, also where both logarithms are -inf."""
    return torch.where(weight > 0, weight * (log_weight - log_other), 0).sum(-1)


def _fkl(rows: _Rows) -> Tensor:
    return _kl(rows.p, rows.log_p, rows.log_q)


def _rkl(rows: _Rows) -> Tensor:
    return _kl(rows.q, rows.log_q, rows.log_p)


def _jeffreys(rows: _Rows) -> Tensor:
    return _fkl(rows) + _rkl(rows)


def _log_mixture(rows: _Rows) -> Tensor:
    """log m, with m = beta p + (1 - beta) q."""
    return (rows.beta * rows.p + (1 - rows.beta) * rows.q).log()


def _jsd(rows: _Rows) -> Tensor:
    log_m = _log_mixture(rows)
    return rows.beta * _kl(rows.p, rows.log_p, log_m) + (1 - rows.beta) * _kl(rows.q, rows.log_q, log_m)


def _skewed_kl(rows: _Rows) -> Tensor:
    return _kl(rows.p, rows.log_p, _log_mixture(rows))


def _alpha(rows: _Rows) -> Tensor:
    return torch.minimum(rows.p, rows.q).sum(-1)


def _tvd(rows: _Rows) -> Tensor:
    return 1 - _alpha(rows)


def _lk_alpha(rows: _Rows) -> Tensor:
    return -_alpha(rows).log()


def _lk_lambda(rows: _Rows) -> Tensor:
    alpha = _alpha(rows)
    weight = (-rows.eta * alpha).exp().detach()
    return weight * _fkl(rows) + (1 - weight) * (1 - alpha)


def _lk_argmax(rows: _Rows) -> Tensor:
    return -(rows.log_p + rows.log_q).logsumexp(-1)


_FROM_TARGET: Mapping[str, Callable[[_Rows], Tensor]] = {
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
_FROM_LABELS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": _cross_entropy}
check_one_per_kind(_FROM_TARGET, _FROM_LABELS)
