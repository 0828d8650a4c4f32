"""The definition of every divergence, in plain torch, differentiable by autograd. p is the target, q the draft."""

from __future__ import annotations

import torch
from torch import Tensor

DIVERGENCES = ("fkl", "rkl", "jsd", "jeffreys", "skewed_kl", "tvd", "lk_alpha", "lk_lambda", "lk_argmax", "ce")

DEFAULT_BETA = {"jsd": 0.5, "skewed_kl": 0.1}
"""As published: the symmetric mixture of GKD, the slight one of DistiLLM."""


def divergence(
    draft_logits: Tensor,
    target_logits: Tensor | None,
    kind: str,
    *,
    beta: float | None = None,
    eta: float = 3.0,
    labels: Tensor | None = None,
) -> Tensor:
    """The divergence of each row, [tokens], from logits [tokens, vocab].

    fkl = KL(p || q), rkl = KL(q || p), jeffreys = fkl + rkl, tvd = 1 - alpha with alpha = sum_v min(p, q),
    lk_alpha = -log alpha, lk_lambda = w fkl + (1 - w) tvd with w = exp(-eta alpha) held constant,
    jsd = beta KL(p || m) + (1 - beta) KL(q || m) and skewed_kl = KL(p || m) with m = beta p + (1 - beta) q,
    lk_argmax = -log sum_v p q, the softened -log p(argmax q), ce = -log q(label).
    """
    log_q = draft_logits.log_softmax(-1)
    if kind == "ce":
        assert labels is not None, "ce needs labels"
        return -log_q.gather(1, labels[:, None])[:, 0]
    assert target_logits is not None, "every divergence but ce needs target_logits"
    log_p = target_logits.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "fkl":
        return _kl(p, log_p, log_q)
    if kind == "rkl":
        return _kl(q, log_q, log_p)
    if kind == "jeffreys":
        return _kl(p, log_p, log_q) + _kl(q, log_q, log_p)
    if kind in DEFAULT_BETA:
        beta = DEFAULT_BETA[kind] if beta is None else beta
        log_m = (beta * p + (1 - beta) * q).log()
        if kind == "skewed_kl":
            return _kl(p, log_p, log_m)
        return beta * _kl(p, log_p, log_m) + (1 - beta) * _kl(q, log_q, log_m)
    if kind == "lk_argmax":
        return -(log_p + log_q).logsumexp(-1)
    alpha = torch.minimum(p, q).sum(-1)
    if kind == "tvd":
        return 1 - alpha
    if kind == "lk_alpha":
        return -alpha.log()
    if kind == "lk_lambda":
        weight = (-eta * alpha).exp().detach()
        return weight * _kl(p, log_p, log_q) + (1 - weight) * (1 - alpha)
    raise ValueError(f"unknown divergence {kind!r}; choose one of {', '.join(DIVERGENCES)}")


def _kl(weight: Tensor, log_weight: Tensor, log_other: Tensor) -> Tensor:
    """KL(weight || other); ids of probability 0 contribute 0, also where both logarithms are -inf."""
    return torch.where(weight > 0, weight * (log_weight - log_other), 0).sum(-1)
