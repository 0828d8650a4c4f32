"""Verification: exact where it is greedy, and the right distribution where it samples."""

from __future__ import annotations

import sys

import pytest
import torch
from scipy.stats import chi2

from specdistill_kernels import verify
from specdistill_kernels.verify import reference

# The package's function has the module's name, so the module is taken from where imports are kept.
VERIFY_MODULE = sys.modules["specdistill_kernels.verify"]
VOCAB = 6
DRAWS = 4000
# One false alarm in 100,000 runs of each test; the seeds are fixed, so it either never or always alarms.
FALSE_ALARM = 1e-5


def g_test(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of observed counts under the given distribution; impossible outcomes must not occur at all."""
    if (counts[probabilities == 0] > 0).any():
        return 0.0
    possible = probabilities > 0
    seen, wanted = counts[possible].double(), probabilities[possible].double() * counts.sum()
    statistic = 2 * torch.where(seen > 0, seen * (seen / wanted).log(), 0).sum()
    return float(chi2.sf(float(statistic), int(possible.sum()) - 1))


def emitted_pairs(target: torch.Tensor, draft: torch.Tensor, rule: str, seed: int = 0) -> torch.Tensor:
    """First two tokens after drafting one: counts [VOCAB, VOCAB] over many draws.

    target[0] is the law of the first token, target[1 + x] that of the second after x; draft is q of the first.
    """
    counts = torch.zeros(VOCAB, VOCAB)
    generator = torch.Generator().manual_seed(seed)
    q, p = draft.softmax(-1), target.softmax(-1)
    if rule == "argmax_draft":
        proposals = draft.argmax().repeat(DRAWS)
    else:
        proposals = torch.multinomial(q, DRAWS, replacement=True, generator=generator)
    seconds = [iter(torch.multinomial(row, DRAWS, True, generator=generator).tolist()) for row in p[1:]]
    for token in proposals:
        rows = torch.stack([target[0], target[1 + token]])
        got = verify(rows, token[None], torch.tensor([1]), draft[None], rule=rule, generators=[generator])
        if int(got.num_accepted):
            counts[token, int(got.next_token)] += 1
        else:
            first = int(got.next_token)
            counts[first, next(seconds[first])] += 1
    return counts


def laws(seed=0, filtered=False):
    generator = torch.Generator().manual_seed(seed)
    target = 1.5 * torch.randn(VOCAB + 1, VOCAB, generator=generator)
    draft = 1.5 * torch.randn(VOCAB, generator=generator)
    if filtered:
        target[0, 2], draft[4] = -torch.inf, -torch.inf
    return target, draft


def p_value(rule, filtered=False, seed=0):
    target, draft = laws(filtered=filtered)
    joint = target[0].softmax(-1)[:, None] * target[1:].softmax(-1)
    return g_test(emitted_pairs(target, draft, rule, seed).flatten(), joint.flatten())


@pytest.mark.parametrize("filtered", [False, True], ids=["full", "filtered"])
@pytest.mark.parametrize("rule", ["sampled", "argmax_draft", "block"])
def test_what_is_emitted_follows_the_target(rule, filtered):
    assert p_value(rule, filtered) > FALSE_ALARM


def planted(kind):
    """`verify_row` with one classic mistake."""

    def wrong(target_logits, draft_ids, draft_logits, rule, generator, lenience):
        p, q = target_logits[0].softmax(-1), draft_logits[0].softmax(-1)
        token = int(draft_ids[0])
        uniform = torch.rand((), generator=generator)
        ratio = q[token] / p[token] if kind == "inverted ratio" else p[token] / q[token]
        if uniform < ratio:
            source = p if kind == "bonus from the wrong row" else target_logits[1].softmax(-1)
            return 1, int(torch.multinomial(source, 1, generator=generator))
        residual = p if kind == "no residual" else (p - q).clamp(min=0)
        return 0, int(torch.multinomial(residual, 1, generator=generator))

    return wrong


@pytest.mark.parametrize("kind", ["inverted ratio", "no residual", "bonus from the wrong row"])
def test_planted_errors_are_caught(kind, monkeypatch):
    monkeypatch.setattr(VERIFY_MODULE, "verify_row", planted(kind))
    assert p_value("sampled") < FALSE_ALARM


def test_the_planted_frame_without_a_mistake_passes(monkeypatch):
    monkeypatch.setattr(VERIFY_MODULE, "verify_row", planted("none"))
    assert p_value("sampled") > FALSE_ALARM


def test_acceptance_rate_is_the_overlap():
    target, draft = laws()
    overlap = float(torch.minimum(target[0].softmax(-1), draft.softmax(-1)).sum())
    generator = torch.Generator().manual_seed(0)
    proposals = torch.multinomial(draft.softmax(-1), DRAWS, True, generator=generator)
    kept = sum(
        int(verify(target[:2], token[None], torch.tensor([1]), draft[None], rule="sampled", generators=[generator])[0])
        for token in proposals
    )
    assert kept / DRAWS == pytest.approx(overlap, abs=4 * 0.5 / DRAWS**0.5)


def test_an_identical_draft_is_always_accepted_and_a_disjoint_one_never():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, VOCAB)
    for _ in range(300):
        ids = torch.multinomial(logits[:3].softmax(-1), 1, generator=generator)[:, 0]
        got = verify(logits, ids, torch.tensor([3]), logits[:3], rule="sampled", generators=[generator])
        assert int(got.num_accepted) == 3
    target = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]] * 2)
    draft = torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0]])
    for token in (2, 3):
        got = verify(target, torch.tensor([token]), torch.tensor([1]), draft, rule="sampled", generators=[generator])
        assert int(got.num_accepted) == 0 and int(got.next_token) in (0, 1)


def test_greedy_on_a_ragged_batch():
    best = torch.tensor([3, 1, 4, 1, 5, 2, 0])
    logits = torch.nn.functional.one_hot(best, VOCAB).float()
    # Rows propose 2, 0 and 2 tokens: target rows 0-2, 3 and 4-6.
    got = verify(logits, torch.tensor([3, 1, 5, 3]), torch.tensor([2, 2, 4]), rule="greedy")
    assert got.num_accepted.tolist() == [2, 0, 1] and got.next_token.tolist() == [4, 1, 2]


def test_one_row_alone_and_in_a_batch_draws_the_same():
    target, draft = laws()
    rows = target[:3]
    ids = torch.tensor([0, 1])
    q = torch.stack([draft, draft])
    alone = verify(rows, ids, torch.tensor([2]), q, rule="sampled", generators=[torch.Generator().manual_seed(7)])
    both = verify(
        torch.cat([rows, rows]),
        torch.cat([ids, ids]),
        torch.tensor([2, 4]),
        torch.cat([q, q]),
        rule="sampled",
        generators=[torch.Generator().manual_seed(1), torch.Generator().manual_seed(7)],
    )
    assert alone.num_accepted[0] == both.num_accepted[1] and alone.next_token[0] == both.next_token[1]


def test_numerically_equal_laws_never_fail_on_an_empty_residual():
    p = torch.tensor([[0.1, 0.9], [0.5, 0.5]]).log()
    count, token = reference.verify_row(
        p, torch.tensor([0]), torch.tensor([[0.1000001, 0.8999999]]).log(), "sampled", torch.Generator()
    )
    assert count in (0, 1) and token in (0, 1)


def test_refuses():
    logits = torch.randn(3, VOCAB)
    with pytest.raises(ValueError, match="unknown rule"):
        verify(logits, torch.tensor([1, 2]), torch.tensor([2]), rule="typical")
    with pytest.raises(ValueError, match="expected 3 target rows"):
        verify(logits[:2], torch.tensor([1, 2]), torch.tensor([2]), rule="greedy")
    with pytest.raises(ValueError, match="needs draft_logits"):
        verify(logits, torch.tensor([1, 2]), torch.tensor([2]), rule="sampled", generators=[torch.Generator()])
    with pytest.raises(ValueError, match="one generator per row"):
        verify(logits, torch.tensor([1, 2]), torch.tensor([2]), rule="argmax_draft")


def block_law(draws, rule, seed=0, lenience=1.0):
    """First three tokens after drafting two, and the mean accepted count, over many draws."""
    generator = torch.Generator().manual_seed(seed)
    target = 1.5 * torch.randn(1 + VOCAB + VOCAB**2, VOCAB, generator=generator)
    draft = 1.5 * torch.randn(1 + VOCAB, VOCAB, generator=generator)
    q, p = draft.softmax(-1), target.softmax(-1)
    joint = p[0][:, None, None] * p[1 : 1 + VOCAB][:, :, None] * p[1 + VOCAB :].reshape(VOCAB, VOCAB, VOCAB)
    counts, accepted = torch.zeros(VOCAB, VOCAB, VOCAB), 0
    for _ in range(draws):
        first = int(torch.multinomial(q[0], 1, generator=generator))
        second = int(torch.multinomial(q[1 + first], 1, generator=generator))
        rows = torch.stack([target[0], target[1 + first], target[1 + VOCAB + first * VOCAB + second]])
        got = verify(
            rows,
            torch.tensor([first, second]),
            torch.tensor([2]),
            torch.stack([draft[0], draft[1 + first]]),
            rule=rule,
            generators=[generator],
            lenience=lenience,
        )
        kept = int(got.num_accepted)
        accepted += kept
        emitted = [*[first, second][:kept], int(got.next_token)]
        while len(emitted) < 3:
            row = p[1 + emitted[0]] if len(emitted) == 1 else p[1 + VOCAB + emitted[0] * VOCAB + emitted[1]]
            emitted.append(int(torch.multinomial(row, 1, generator=generator)))
        counts[tuple(emitted)] += 1
    return g_test(counts.flatten(), joint.flatten()), accepted / draws


def test_block_verification_is_exact_over_three_tokens_and_keeps_more_than_token_verification():
    p_block, kept_block = block_law(6000, "block")
    p_token, kept_token = block_law(6000, "sampled")
    assert p_block > FALSE_ALARM and p_token > FALSE_ALARM
    # Standard error of each mean is below 0.01.
    assert kept_block > kept_token + 0.02, (kept_block, kept_token)


@pytest.mark.parametrize("seed", range(20))
def test_block_verification_never_expects_fewer_tokens(seed):
    """Exactly, by summing over every draft of two tokens and every coin: E[kept] = sum over prefixes of q x chance."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(1 + VOCAB, VOCAB, generator=generator).softmax(-1).pow(3)
    q = torch.rand(1 + VOCAB, VOCAB, generator=generator).softmax(-1).pow(3)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    token = block = 0.0
    for first in range(VOCAB):
        weight = min(1.0, float(p[0, first] / q[0, first]))
        token += float(q[0, first]) * weight
        mass = float((weight * p[1 + first] - q[1 + first]).clamp(min=0).sum())
        inside = mass / (mass + 1 - weight) if mass + 1 - weight > 0 else 1.0
        for second in range(VOCAB):
            reached = float(q[0, first] * q[1 + first, second])
            token += reached * weight * min(1.0, float(p[1 + first, second] / q[1 + first, second]))
            end = min(1.0, weight * float(p[1 + first, second] / q[1 + first, second]))
            block += reached * (2 * end + (1 - end) * inside)
    assert block >= token - 1e-9


def test_lenience_is_lossy_accepts_more_and_is_exact_at_one():
    p_exact, kept_exact = block_law(3000, "lenient")
    p_loose, kept_loose = block_law(3000, "lenient", lenience=0.5)
    assert p_exact > FALSE_ALARM and p_loose < FALSE_ALARM
    assert kept_loose > kept_exact + 0.1
    with pytest.raises(ValueError, match="0 < lenience <= 1"):
        block_law(1, "lenient", lenience=0.0)


@pytest.mark.parametrize("rule", ["block", "lenient"])
def test_an_identical_draft_passes_these_rules_too(rule):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, VOCAB)
    for _ in range(200):
        ids = torch.multinomial(logits[:3].softmax(-1), 1, generator=generator)[:, 0]
        got = verify(logits, ids, torch.tensor([3]), logits[:3], rule=rule, generators=[generator])
        assert int(got.num_accepted) == 3
