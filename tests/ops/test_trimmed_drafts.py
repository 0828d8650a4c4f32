"""Divergences of a draft whose head lacks some of the target's ids: those are one outcome, which it never says."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels import SoftLabels, fused_divergence
from specdistill_kernels.fused_divergence import KINDS, trimmed_log_probs

IDS = torch.tensor([0, 2, 3, 7])
KINDS_OF_TARGET = [name for name, kind in KINDS.items() if kind.needs_target]


def inputs():
    torch.manual_seed(0)
    draft, target = torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 8, dtype=torch.float64)
    heads = torch.randn(len(IDS), 6, dtype=torch.float64), torch.randn(9, 8, dtype=torch.float64)
    return draft.requires_grad_(), heads[0].requires_grad_(), target, heads[1]


def by_autograd(kind, draft, draft_head, target, target_head, temperature=1.0):
    """The formulas of `KINDS` over the whole vocabulary, where q is 0 for ids that the draft lacks."""
    log_q = (draft @ draft_head.T / temperature).log_softmax(-1)
    whole = (target @ target_head.T / temperature).log_softmax(-1)
    log_p, beta = whole[:, IDS], KINDS[kind].default_beta
    p, q, rest = log_p.exp(), log_q.exp(), 1 - log_p.exp().sum(-1)
    forward, reverse = (p * (log_p - log_q)).sum(-1), (q * (log_q - log_p)).sum(-1)
    alpha, mixture = torch.minimum(p, q).sum(-1), (beta * p + (1 - beta) * q).log()
    # Behind p's other ids stands beta p alone.
    skewed = (p * (log_p - mixture)).sum(-1) - rest * torch.tensor(beta).log()
    weight = (-3.0 * alpha).exp().detach()
    return {
        "fkl": forward,
        "rkl": reverse,
        "jeffreys": forward + reverse,
        "jsd": beta * skewed + (1 - beta) * (q * (log_q - mixture)).sum(-1),
        "skewed_kl": skewed,
        "tvd": 1 - alpha,
        "lk_alpha": -alpha.log(),
        "lk_lambda": weight * forward + (1 - weight) * (1 - alpha),
        "lk_argmax": -(p * q).sum(-1).log(),
    }[kind]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", KINDS_OF_TARGET)
def test_value_and_gradient_are_those_of_the_definition(kind, temperature):
    draft, head, target, target_head = inputs()
    weights = torch.tensor([0.5, 1.0, 0.0, 2.0, 0.25], dtype=torch.float64)
    table = trimmed_log_probs(target, target_head, IDS, temperature=temperature)
    output = fused_divergence(
        draft, head, None, None, weights, kind=kind, temperature=temperature, trimmed_target=table
    )
    expected = by_autograd(kind, draft, head, target, target_head, temperature)
    torch.testing.assert_close(output.per_token, (expected * (weights > 0)).float(), rtol=1e-5, atol=1e-6)
    ours = torch.autograd.grad(output.loss, (draft, head))
    theirs = torch.autograd.grad((weights * expected).sum(), (draft, head))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_alpha_counts_nothing_for_ids_that_the_draft_lacks():
    draft, head, target, target_head = inputs()
    table = trimmed_log_probs(target, target_head, IDS)
    output = fused_divergence(draft, head, None, None, torch.ones(5).double(), trimmed_target=table)
    p, q = (target @ target_head.T).softmax(-1)[:, IDS], (draft @ head.T).softmax(-1)
    torch.testing.assert_close(output.alpha, torch.minimum(p, q).sum(-1).float())


def test_a_head_of_all_ids_is_no_trimmed_one():
    torch.manual_seed(1)
    draft, target, head = torch.randn(5, 6), torch.randn(5, 6), torch.randn(9, 6)
    table = trimmed_log_probs(target, head, torch.arange(9))
    for kind in KINDS_OF_TARGET:
        one = fused_divergence(draft, head, target, head, torch.ones(5), kind=kind).per_token
        other = fused_divergence(draft, head, None, None, torch.ones(5), kind=kind, trimmed_target=table).per_token
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_padding_and_soft_caps_are_the_targets_own():
    _, _, target, target_head = inputs()
    table = trimmed_log_probs(target, target_head, IDS, vocab_size=8, softcap=2.0, temperature=0.5)
    log_p = (2 * torch.tanh(target @ target_head[:8].T / 2) / 0.5).log_softmax(-1)
    torch.testing.assert_close(table[:, :4], log_p[:, IDS])
    torch.testing.assert_close(table.exp().sum(1), torch.ones(5).double())


def test_targets_that_do_not_fit_are_refused():
    draft, head, target, target_head = inputs()
    table, ones = trimmed_log_probs(target, target_head, IDS), torch.ones(5).double()
    with pytest.raises(ValueError, match="one column more"):
        fused_divergence(draft, head, None, None, ones, trimmed_target=table[:, 1:])
    with pytest.raises(ValueError, match="replaces the target"):
        fused_divergence(draft, head, target, target_head, ones, trimmed_target=table)
    soft = SoftLabels(torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, 1))
    with pytest.raises(ValueError, match="replaces the target"):
        fused_divergence(draft, head, None, None, ones, soft_labels=soft, trimmed_target=table)
    with pytest.raises(RuntimeError, match="nor trimmed_target"):
        fused_divergence(draft, head, None, None, ones, trimmed_target=table, backend="fused")


def test_the_targets_softcap_is_taken_once():
    """It capped the target's log-probabilities once more."""
    draft, head, target, target_head = inputs()
    table = trimmed_log_probs(target, target_head, IDS, softcap=3.0)
    fused_divergence(draft, head, None, None, torch.ones(5), trimmed_target=table, draft_softcap=2.0)
    with pytest.raises(ValueError, match="has the target's softcap already"):
        fused_divergence(draft, head, None, None, torch.ones(5), trimmed_target=table, target_softcap=3.0)
