"""The divergences against TRL's and Liger's public functions: equal where those are right; where not, how not."""

from __future__ import annotations

import os

import pytest
import torch

from specdistill.distill.training.loss import divergence_of
from specdistill_kernels import fused_divergence
from specdistill_kernels.fused_divergence.reference import divergence

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from trl.experimental.gkd import GKDTrainer
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

TOKENS, VOCAB = 12, 50


def logits(seed=0, tokens=TOKENS, vocab=VOCAB):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, vocab, generator=generator, dtype=torch.float64) for _ in range(2)]


def linear(seed=0, target_vocab=VOCAB):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator)

    return make(TOKENS, 8).requires_grad_(), make(VOCAB, 8).requires_grad_(), make(TOKENS, 6), make(target_vocab, 6)


def ours(hidden, head, target_hidden, target_head, kind, beta=None, temperature=1.0):
    mean = torch.full((TOKENS,), 1 / TOKENS)
    settings = {"kind": kind, "beta": beta, "temperature": temperature, "vocab_size": VOCAB}
    return fused_divergence(hidden, head, target_hidden, target_head, mean, **settings).loss


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_trl_generalised_jsd(beta, temperature):
    draft, target = logits()
    theirs = GKDTrainer.generalized_jsd_loss(draft[None], target[None], beta=beta, temperature=temperature)
    kind = {0.0: "fkl", 1.0: "rkl"}.get(beta, "jsd")
    mine = divergence(draft / temperature, target / temperature, kind, beta=beta)
    # TRL's batchmean divides by the batch's sequences where no labels are given: here by 1.
    torch.testing.assert_close(theirs, mine.sum())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_trl_chunked_divergence_with_gradients(beta):
    mine, theirs = linear(), linear()
    kind = {0.0: "fkl", 1.0: "rkl"}.get(beta, "jsd")
    loss = ours(*mine, kind, beta or None if kind == "jsd" else None)
    per_token, _ = ChunkedDivergenceFunction.apply(theirs[0], theirs[1], None, theirs[2], theirs[3], None, beta)
    torch.testing.assert_close(loss, per_token.mean(), rtol=1e-5, atol=1e-6)
    for one, other in zip(
        torch.autograd.grad(loss, mine[:2]), torch.autograd.grad(per_token.mean(), theirs[:2]), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_liger_chunked_jsd_with_gradients(beta):
    mine, theirs = linear(), linear()
    kind = {0.0: "fkl", 1.0: "rkl"}.get(beta, "jsd")
    loss = ours(*mine, kind, beta if kind == "jsd" else None)
    liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False, chunk_size=5)
    other = liger(theirs[0], theirs[1], theirs[2], theirs[3], torch.zeros(TOKENS, dtype=torch.int64))
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6)
    for one, two in zip(torch.autograd.grad(loss, mine[:2]), torch.autograd.grad(other, theirs[:2]), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def test_trl_and_liger_jump_at_the_ends_of_beta_and_ours_does_not():
    """beta = 0.01 is a hundredth of beta = 0 there: near its ends beta is only a learning rate."""
    draft, target = logits(tokens=64, vocab=500)
    trl = {beta: float(GKDTrainer.generalized_jsd_loss(draft[None], target[None], beta=beta)) for beta in (0.0, 0.01)}
    assert trl[0.01] < 0.02 * trl[0.0]

    def scaled(beta):
        kind, inner, scale = divergence_of("jsd", beta)
        return float(scale * divergence(draft, target, kind, beta=inner).sum())

    fkl, rkl = (float(divergence(draft, target, kind).sum()) for kind in ("fkl", "rkl"))
    assert scaled(0.0) == fkl and scaled(1.0) == rkl
    for beta in (1e-2, 1e-3, 1e-4):
        assert scaled(beta) == pytest.approx(fkl, rel=4 * beta)
        assert scaled(1 - beta) == pytest.approx(rkl, rel=4 * beta)


def test_liger_pads_a_smaller_head_with_zeros_and_ours_slices():
    """A draft equal to the target, whose head has five padding rows that it never samples: their logits are -30."""
    hidden, head = (tensor.detach() * 0.3 for tensor in linear()[:2])
    head.requires_grad_()
    target_hidden = torch.cat([hidden.detach(), torch.ones(TOKENS, 1)], 1)
    real = torch.cat([head.detach(), torch.zeros(VOCAB, 1)], 1)
    padding = torch.zeros(5, 9)
    padding[:, -1] = -30
    arguments = (hidden, head, target_hidden, torch.cat([real, padding]))
    liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=False)
    theirs = liger(*arguments, torch.zeros(TOKENS, dtype=torch.int64))
    assert theirs.item() > 0.01, "five phantom ids of logit 0 took probability from the draft's real ones"
    assert ours(*arguments, "jsd", 0.5).item() < 1e-6


def test_liger_adds_cross_entropy_unless_told_otherwise():
    """Its defaults minimise half cross entropy; ours adds none unless --ce-weight asks."""
    hidden, head, _, _ = linear()
    same = LigerFusedLinearJSDLoss(compiled=False)(
        hidden, head, hidden.detach(), head.detach(), torch.zeros(TOKENS, dtype=torch.int64)
    )
    assert same.item() > 0.5, "student equals teacher, and yet there is a loss"
    assert ours(hidden, head, hidden.detach(), head.detach(), "jsd", 0.5).item() < 1e-6


def test_trl_gkd_divides_on_policy_loss_by_the_data_sets_token_count():
    """10 tokens were generated, but the data set's answers had 40: the loss is four times too small."""
    draft, target = logits(tokens=10)
    labels = torch.zeros(1, 10, dtype=torch.int64)
    right = GKDTrainer.generalized_jsd_loss(draft[None], target[None], labels, num_items_in_batch=10)
    wrong = GKDTrainer.generalized_jsd_loss(draft[None], target[None], labels, num_items_in_batch=40)
    torch.testing.assert_close(right, divergence(draft, target, "jsd", beta=0.5).mean())
    torch.testing.assert_close(wrong, right / 4)
