"""The divergences: definition against hand-computed values and autograd, tiles against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from specdistill_kernels.fused_divergence import DIVERGENCES, KINDS, SoftLabels, fused_divergence, tiles
from specdistill_kernels.fused_divergence.reference import divergence

PROBABILISTIC = [name for name, kind in KINDS.items() if kind.needs_target]


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities], dtype=torch.float64).log()


P, Q = (0.5, 0.3, 0.2), (0.2, 0.2, 0.6)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("fkl", 0.5 * math.log(2.5) + 0.3 * math.log(1.5) + 0.2 * math.log(1 / 3)),
        ("rkl", 0.2 * math.log(0.4) + 0.2 * math.log(2 / 3) + 0.6 * math.log(3)),
        ("tvd", 0.4),
        ("lk_alpha", -math.log(0.6)),
        ("lk_argmax", -math.log(0.5 * 0.2 + 0.3 * 0.2 + 0.2 * 0.6)),
        (
            "skewed_kl",
            0.5 * math.log(0.5 / 0.275) + 0.3 * math.log(0.3 / 0.225) + 0.2 * math.log(0.2 / 0.5),
        ),
        (
            "jsd",
            0.25 * (0.5 * math.log(0.5 / 0.275) + 0.3 * math.log(0.3 / 0.225) + 0.2 * math.log(0.2 / 0.5))
            + 0.75 * (0.2 * math.log(0.2 / 0.275) + 0.2 * math.log(0.2 / 0.225) + 0.6 * math.log(0.6 / 0.5)),
        ),
    ],
)
def test_hand_computed_on_three_tokens(kind, expected):
    value = divergence(logits_of(*Q), logits_of(*P), kind, beta=0.25)
    assert float(value) == pytest.approx(expected, abs=1e-12)


def test_jeffreys_and_lk_lambda_are_made_of_their_parts():
    arguments = (logits_of(*Q), logits_of(*P))
    fkl, rkl, tvd = (divergence(*arguments, kind) for kind in ("fkl", "rkl", "tvd"))
    torch.testing.assert_close(divergence(*arguments, "jeffreys"), fkl + rkl)
    weight = math.exp(-3 * 0.6)
    torch.testing.assert_close(divergence(*arguments, "lk_lambda", eta=3), weight * fkl + (1 - weight) * tvd)


@pytest.mark.parametrize("kind", [kind for kind in PROBABILISTIC if kind != "lk_argmax"])
def test_zero_at_equality_and_positive_elsewhere(kind):
    torch.manual_seed(0)
    logits = torch.randn(5, 11, dtype=torch.float64)
    assert divergence(logits, logits, kind).abs().max() < 1e-12
    assert (divergence(logits, torch.randn_like(logits), kind) > 0).all()


def test_jsd_is_symmetric_at_one_half_bounded_and_tends_to_beta_times_fkl():
    torch.manual_seed(0)
    draft, target = torch.randn(2, 6, 9, dtype=torch.float64)
    one, other = divergence(draft, target, "jsd"), divergence(target, draft, "jsd")
    torch.testing.assert_close(one, other)
    assert (divergence(30 * draft, 30 * target, "jsd") <= math.log(2)).all()
    small = divergence(draft, target, "jsd", beta=1e-6)
    torch.testing.assert_close(small / 1e-6, divergence(draft, target, "fkl"), rtol=1e-4, atol=1e-6)


def test_lk_argmax_is_least_for_a_draft_that_is_certain_of_the_targets_argmax():
    target = logits_of(*P)
    certain = torch.tensor([[60.0, 0.0, 0.0]], dtype=torch.float64)
    best = divergence(certain, target, "lk_argmax")
    torch.testing.assert_close(best, -target.log_softmax(-1).max(-1).values)
    # The target's own distribution is not the best one for a server that drafts by argmax: this is no divergence.
    assert divergence(target, target, "lk_argmax") > best


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradcheck_of_the_reference(kind):
    torch.manual_seed(1)
    draft = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randn(3, 7, dtype=torch.float64)
    labels = torch.tensor([0, 6, 3])
    # lk_lambda's weight is a constant for the gradient, so finite differences must hold it still as well.
    weight = (-3.0 * torch.minimum(draft.detach().softmax(-1), target.softmax(-1)).sum(-1)).exp()

    def value(logits):
        if kind == "lk_lambda":
            return weight * divergence(logits, target, "fkl") + (1 - weight) * divergence(logits, target, "tvd")
        return divergence(logits, target, kind, beta=0.3, labels=labels)

    assert torch.autograd.gradcheck(value, (draft,))
    (expected,) = torch.autograd.grad(value(draft).sum(), draft)
    (actual,) = torch.autograd.grad(divergence(draft, target, kind, beta=0.3, labels=labels).sum(), draft)
    torch.testing.assert_close(actual, expected)


def case(tokens=13, vocab=40, draft_size=6, target_size=9, dtype=torch.float64, padded=0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "draft_hidden": make(tokens, draft_size).requires_grad_(),
        "draft_weight": make(vocab + padded, draft_size).requires_grad_(),
        "target_hidden": make(tokens, target_size),
        "target_weight": make(vocab, target_size),
        "weights": torch.rand(tokens, generator=generator).to(dtype),
        "labels": torch.randint(0, min(vocab, 150), (tokens,), generator=generator),
    }


def expected(inputs, kind, temperature=1.0, softcaps=(None, None), vocab=40):
    draft = inputs["draft_hidden"] @ inputs["draft_weight"][:vocab].T
    target = inputs["target_hidden"] @ inputs["target_weight"][:vocab].T
    draft, target = (
        logits if cap is None else cap * torch.tanh(logits / cap)
        for logits, cap in zip((draft, target), softcaps, strict=True)
    )
    per_token = divergence(draft / temperature, target / temperature, kind, beta=0.3, labels=inputs["labels"])
    return (per_token * inputs["weights"]).sum(), per_token


REGIMES = {
    "one-tile": {"tile_rows": 100},
    "multi-tile": {"tile_rows": 4},
    "temperature": {"temperature": 0.7, "tile_rows": 5},
    "softcap": {"draft_softcap": 3.0, "target_softcap": 5.0},
}


@pytest.fixture(params=["one block", "blocks"])
def blocks(request, monkeypatch):
    """Small tiles fit in one block. With `blocks` a tile takes several, of one row or a few."""
    if request.param == "blocks":
        monkeypatch.setattr(tiles, "_BLOCK_ENTRIES", 46)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_tiles_equal_autograd_of_the_reference(kind, regime, blocks):
    settings = REGIMES[regime]
    inputs = case()
    wanted, per_token = expected(
        inputs,
        kind,
        settings.get("temperature", 1.0),
        (settings.get("draft_softcap"), settings.get("target_softcap")),
    )
    wanted_grads = torch.autograd.grad(wanted, (inputs["draft_hidden"], inputs["draft_weight"]))
    output = fused_divergence(**inputs, kind=kind, beta=0.3, **settings)
    grads = torch.autograd.grad(output.loss * 2.5, (inputs["draft_hidden"], inputs["draft_weight"]))
    torch.testing.assert_close(output.loss, wanted, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(output.per_token.double(), per_token.detach(), rtol=1e-5, atol=1e-6)
    for grad, want in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, 2.5 * want, rtol=1e-9, atol=1e-10)


def test_masked_tokens_cost_nothing_and_get_no_gradient():
    inputs = case()
    inputs["weights"][[0, 5, 12]] = 0
    with torch.no_grad():
        inputs["target_hidden"][5] = float("nan")
    output = fused_divergence(**inputs, kind="fkl", tile_rows=4)
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(inputs["draft_weight"].grad).all()
    assert inputs["draft_hidden"].grad[[0, 5, 12]].abs().max() == 0


def test_empty_batch_gives_zero_with_a_gradient_path():
    inputs = case(tokens=0)
    output = fused_divergence(**inputs, kind="jsd")
    output.loss.backward()
    assert output.loss == 0 and inputs["draft_weight"].grad.abs().sum() == 0


def test_padded_vocabulary_takes_no_probability_and_no_gradient():
    inputs = case(padded=8)
    with torch.no_grad():
        inputs["draft_weight"][40:] = 100.0
    output = fused_divergence(**inputs, kind="fkl", vocab_size=40)
    output.loss.backward()
    wanted, _ = expected(inputs, "fkl")
    torch.testing.assert_close(output.loss, wanted.detach(), rtol=1e-6, atol=1e-9)
    assert inputs["draft_weight"].grad[40:].abs().max() == 0


def test_alpha_and_agreement_come_with_the_loss():
    inputs = case()
    output = fused_divergence(**inputs, kind="tvd")
    torch.testing.assert_close(output.alpha, 1 - output.per_token)
    draft = (inputs["draft_hidden"] @ inputs["draft_weight"].T).argmax(-1)
    target = (inputs["target_hidden"] @ inputs["target_weight"].T).argmax(-1)
    assert output.agreement.tolist() == (draft == target).float().tolist()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_float32_is_no_less_accurate_than_plain_torch(kind):
    truth_inputs = case(tokens=64, vocab=3000, draft_size=32, target_size=48)
    truth, _ = expected(truth_inputs, kind, vocab=3000)
    truth_grad = torch.autograd.grad(truth, truth_inputs["draft_hidden"])[0]
    single = {
        name: (value.detach().float().requires_grad_(value.requires_grad) if value.is_floating_point() else value)
        for name, value in truth_inputs.items()
    }
    plain, _ = expected(single, kind, vocab=3000)
    plain_grad = torch.autograd.grad(plain, single["draft_hidden"])[0]
    fused = fused_divergence(**single, kind=kind, beta=0.3, tile_rows=17)
    fused_grad = torch.autograd.grad(fused.loss, single["draft_hidden"])[0]
    scale = truth_grad.abs().max()
    for ours, theirs, want, size in (
        (fused.loss, plain, truth, truth.abs()),
        (fused_grad, plain_grad, truth_grad, scale),
    ):
        allowed = 2 * (theirs.double() - want).abs().max() + 1e-6 * size
        assert (ours.double() - want).abs().max() <= allowed


def test_bfloat16_heads_accumulate_their_gradient_in_float32():
    inputs = case(tokens=512, vocab=64, draft_size=16, target_size=16, dtype=torch.bfloat16)
    output = fused_divergence(**inputs, kind="fkl", tile_rows=1)
    output.loss.backward()
    exact = {name: value.detach().double() if value.is_floating_point() else value for name, value in inputs.items()}
    exact["draft_weight"].requires_grad_()
    wanted, _ = expected(exact, "fkl", vocab=64)
    (grad,) = torch.autograd.grad(wanted, exact["draft_weight"])
    # 512 single-row tiles added up in bfloat16 would lose whole digits; one final rounding loses 2^-9.
    assert ((inputs["draft_weight"].grad.double() - grad).norm() / grad.norm()) < 0.01


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"kind": "kl"}, "unknown divergence 'kl'"),
        ({"kind": "jsd", "beta": 1.0}, "0 < beta < 1"),
        ({"kind": "ce", "labels": None}, "needs labels"),
        ({"kind": "fkl", "target_hidden": None}, "needs target_hidden"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"vocab_size": 41}, "larger than a head"),
        ({"weights": torch.ones(3)}, "same number of tokens"),
    ],
)
def test_refuses(change, text):
    with pytest.raises(ValueError, match=text):
        fused_divergence(**(case() | change))


# The kernels: no less accurate than torch in the same dtype, against the float64 truth.


def problem(vocab, dtype, device, tokens=5, draft_width=24, target_width=40):
    generator = torch.Generator().manual_seed(vocab)

    def drawn(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(device=device, dtype=dtype)

    weights = torch.rand(tokens, generator=generator).to(device)
    weights[1] = 0
    return {
        "draft_hidden": drawn(tokens, draft_width),
        "draft_weight": drawn(vocab + 3, draft_width, scale=0.5),
        "target_hidden": drawn(tokens, target_width),
        "target_weight": drawn(vocab, target_width, scale=0.4),
        "weights": weights,
        "labels": torch.randint(0, min(vocab, 150), (tokens,), generator=generator).to(device),
    }


def outcome(inputs, **settings):
    leaves = {
        name: value.clone().requires_grad_(name.startswith("draft")) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    got = fused_divergence(**leaves, **settings)
    got.loss.backward()
    return {
        "per_token": got.per_token,
        "alpha": got.alpha,
        "agreement": got.agreement,
        "target_entropy": got.target_entropy,
        "grad_hidden": leaves["draft_hidden"].grad,
        "grad_weight": leaves["draft_weight"].grad,
    }


def assert_no_less_accurate(inputs, kind, dtype, **settings):
    truth = outcome({n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}, kind=kind, **settings)
    plain = outcome(inputs, kind=kind, backend="torch", **settings)
    fused = outcome(inputs, kind=kind, backend="fused", **settings)
    for name, exact in truth.items():
        error = (fused[name].double() - exact.double()).abs().max()
        # The gradient of the logits is rounded once more, to the heads' dtype, where it replaces them.
        rounding = (
            torch.finfo(dtype).eps * exact.abs().max() if name.startswith("grad") else 1e-6 * (1 + exact.abs().max())
        )
        assert error <= 2 * (plain[name].double() - exact.double()).abs().max() + rounding, name
        assert exact.isfinite().all() and fused[name].isfinite().all()


@pytest.mark.parametrize("kind", DIVERGENCES)
@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(17, torch.float32), (2500, torch.float32), (300, torch.bfloat16)],
    ids=["tiny", "blocks", "bf16"],
)
def test_kernels_are_no_less_accurate_than_torch(kind, vocab, dtype, device, poisoned_empty):
    assert_no_less_accurate(problem(vocab, dtype, device), kind, dtype)


@pytest.mark.parametrize("kind", ["fkl", "lk_lambda", "ce"])
def test_kernels_with_softcap_temperature_tiles_and_padded_vocabulary(kind, device):
    settings = {"temperature": 0.7, "draft_softcap": 3.0, "target_softcap": 5.0, "tile_rows": 2, "vocab_size": 150}
    assert_no_less_accurate(problem(160, torch.float32, device), kind, torch.float32, **settings)


@pytest.mark.parametrize("vocab", [32000, 151936])
def test_kernels_on_large_vocabularies(vocab, device):
    inputs = problem(vocab, torch.float32, device, tokens=2, draft_width=4, target_width=4)
    truth = outcome({n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}, kind="fkl")
    fused = outcome(inputs, kind="fkl", backend="fused")
    for name, exact in truth.items():
        torch.testing.assert_close(fused[name].double(), exact.double(), rtol=1e-4, atol=1e-6)


def test_kernels_leave_masked_tokens_and_targets_alone(device):
    inputs = problem(40, torch.float32, device)
    inputs["draft_hidden"][1] = torch.nan
    before = inputs["target_hidden"].clone()
    got = outcome(inputs, kind="fkl", backend="fused")
    assert got["grad_hidden"][1].eq(0).all() and got["grad_weight"].isfinite().all()
    assert torch.equal(inputs["target_hidden"], before)


# Soft labels: the target's K likeliest ids, and one outcome for the rest.


def soft_problem(vocab=12, top=4, tokens=3):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, target = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((tokens, 5), (vocab, 5), (tokens, vocab))
    )
    log_probs, ids = target.log_softmax(-1).topk(top)
    return hidden.requires_grad_(), weight.requires_grad_(), target, SoftLabels(ids, log_probs)


@pytest.mark.parametrize("kind", PROBABILISTIC)
def test_soft_labels_are_the_divergence_of_merged_outcomes(kind, blocks):
    hidden, weight, target, soft = soft_problem(tokens=9)
    weights = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def merged(log_probs):
        top = log_probs.gather(1, soft.token_ids)
        rest = log_probs.scatter(1, soft.token_ids, -torch.inf).logsumexp(-1, keepdim=True)
        return torch.cat([top, rest], 1)

    wanted = divergence(merged((hidden @ weight.T).log_softmax(-1)), merged(target.log_softmax(-1)), kind)
    got = fused_divergence(hidden, weight, None, None, weights, kind=kind, soft_labels=soft, tile_rows=7)
    torch.testing.assert_close(got.per_token.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    true = fused_divergence(hidden, weight, target, torch.eye(12, dtype=torch.float64), weights, kind=kind)
    if kind not in ("lk_lambda",):
        assert (got.per_token <= true.per_token + 1e-6).all()
    assert (got.alpha >= true.alpha - 1e-6).all()
    for mine, theirs in zip(
        torch.autograd.grad(got.loss, (hidden, weight)),
        torch.autograd.grad((weights * wanted).sum(), (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("kind", PROBABILISTIC)
def test_soft_labels_of_the_whole_vocabulary_are_the_target(kind):
    hidden, weight, target, soft = soft_problem(top=12)
    ones = torch.ones(3, dtype=torch.float64)
    got = fused_divergence(hidden, weight, None, None, ones, kind=kind, soft_labels=soft, temperature=1.0)
    true = fused_divergence(hidden, weight, target, torch.eye(12, dtype=torch.float64), ones, kind=kind)
    torch.testing.assert_close(got.per_token, true.per_token)
    gradients = [torch.autograd.grad(output.loss, weight)[0] for output in (got, true)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", [kind for kind in DIVERGENCES if kind != "ce"])
@pytest.mark.parametrize("over", [0.0, 2e-4])
def test_soft_labels_whose_rest_rounds_away_stay_finite(kind, over):
    """float16 labels of a confident target sum to 1 or slightly more, yet the draft likes other ids too."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 8, requires_grad=True), torch.randn(40, 8)
    log_probs = torch.tensor([[1 - 1e-9, 1e-9], [0.9, 0.1]]).log() + over
    soft = SoftLabels(torch.tensor([[3, 5], [1, 0]]), log_probs)
    got = fused_divergence(hidden, weight, None, None, torch.ones(2), kind=kind, soft_labels=soft)
    got.loss.backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all() and got.per_token.isfinite().all()
    assert (got.per_token >= -1e-3).all()


@pytest.mark.parametrize("kind", PROBABILISTIC)
def test_empty_places_of_soft_labels_change_nothing(kind):
    hidden, weight, _, soft = soft_problem()
    ids = soft.token_ids
    free = torch.tensor([[next(token for token in range(12) if token not in row)] for row in ids.tolist()])
    nothing = torch.full((len(ids), 1), -torch.inf, dtype=torch.float64)
    wider = SoftLabels(torch.cat([free, ids], 1), torch.cat([nothing, soft.log_probs], 1))
    ones = torch.ones(3, dtype=torch.float64)
    outputs = [
        fused_divergence(hidden, weight, None, None, ones, kind=kind, soft_labels=labels) for labels in (soft, wider)
    ]
    torch.testing.assert_close(*(output.per_token for output in outputs))
    torch.testing.assert_close(*(output.alpha for output in outputs))
    torch.testing.assert_close(*(torch.autograd.grad(output.loss, weight)[0] for output in outputs))


def test_soft_labels_refuse_what_they_cannot_be():
    hidden, weight, _, soft = soft_problem()
    ones = torch.ones(3)
    with pytest.raises(ValueError, match="replace the target"):
        fused_divergence(hidden, weight, None, None, ones, kind="ce", labels=torch.zeros(3).long(), soft_labels=soft)
    with pytest.raises(ValueError, match="as many ids as"):
        fused_divergence(
            hidden, weight, None, None, ones, soft_labels=SoftLabels(soft.token_ids[:, :2], soft.log_probs)
        )
    with pytest.raises(RuntimeError, match="takes neither soft_labels nor float64"):
        fused_divergence(hidden, weight, None, None, ones, soft_labels=soft, backend="fused")
