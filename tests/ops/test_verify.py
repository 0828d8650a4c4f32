"""Verification: exact where it is greedy, the right distribution where it samples, the same on every backend."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from scipy.stats import chi2

from specdistill_kernels import filter_threshold, noise, sample, verify
from specdistill_kernels.verify import reference

VOCAB = 6
DRAWS = 9000
# One false alarm in 100,000 runs of each test; the seeds are fixed, so it either never or always alarms.
FALSE_ALARM = 1e-5
EXACT_RULES = ("sampled", "argmax_draft", "block")
SETTINGS = {
    "plain": {},
    "cool": {"temperature": 0.6},
    "top-k": {"top_k": 4},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.15},
    "all": {"temperature": 1.4, "top_k": 5, "top_p": 0.9, "min_p": 0.05},
}


def g_test(counts: torch.Tensor, probabilities: torch.Tensor) -> float:
    """p-value of observed counts under the given distribution; impossible outcomes must not occur at all."""
    if (counts[probabilities == 0] > 0).any():
        return 0.0
    wanted = probabilities.double() * counts.sum()
    # The approximation needs about five expected draws in a cell; rarer outcomes are pooled.
    common = wanted >= 5
    cells = torch.cat([counts[common].double(), counts[~common].sum()[None].double()])
    expected = torch.cat([wanted[common], wanted[~common].sum()[None]])
    cells, expected = cells[expected > 0], expected[expected > 0]
    statistic = 2 * torch.where(cells > 0, cells * (cells / expected).log(), 0).sum()
    return float(chi2.sf(float(statistic), len(cells) - 1))


def law(logits, temperature=1.0, **filters):
    rows = logits.reshape(-1, VOCAB)
    lowest = filter_threshold(rows, temperature=temperature, **filters)
    return (rows.masked_fill(rows < lowest[:, None], -torch.inf) / temperature).softmax(-1).reshape(logits.shape)


STOCK_LAW = law


class Tables:
    """Laws of three tokens: target behind every prefix of up to two tokens, draft behind every prefix of up to one.

    Rows come out of a wider table, so they are not contiguous: a padded vocabulary is sliced like that.
    """

    def __init__(self, seed=0, closeness=1.0, device="cpu"):
        generator = torch.Generator().manual_seed(seed)
        wide = 1.5 * torch.randn(1 + VOCAB + VOCAB**2, VOCAB + 2, generator=generator)
        self.target = wide.to(device)[:, :VOCAB]
        noisy = wide + closeness * torch.randn(wide.shape, generator=generator)
        self.draft = noisy.to(device)[: 1 + VOCAB, :VOCAB]

    def joint(self, **settings):
        p = law(self.target, **settings)
        return p[0][:, None, None] * p[1 : 1 + VOCAB][:, :, None] * p[1 + VOCAB :].reshape(VOCAB, VOCAB, VOCAB)


def emitted_triples(tables: Tables, rule: str, draws=DRAWS, seed=0, backend="auto", lenience=1.0, own=None, **settings):
    """First three tokens of `draws` requests that draft 0, 1 or 2 tokens in turn: counts, and mean accepted of 2.

    own: The draft's settings where they differ from the target's. Verification then gets the draft's probabilities.
    """
    target, draft, device = tables.target, tables.draft, tables.target.device
    seeds = torch.arange(draws, device=device) + seed * draws
    zeros = torch.zeros(draws, dtype=torch.int64, device=device)

    drawn = settings if own is None else own

    def propose(rows, position):
        if rule == "argmax_draft":
            return rows.argmax(-1)
        return sample(rows, seeds=seeds, positions=zeros + position, rounds=zeros, stream=noise.DRAFT, **drawn)

    def continued(rows, position):
        return sample(rows, seeds=seeds, positions=zeros + position, **settings)

    first = propose(draft[zeros], 0)
    second = propose(draft[1 + first], 1)
    amounts = torch.arange(draws, device=device) % 3
    drafted = torch.stack([first, second], 1)
    inside = torch.arange(2, device=device) < amounts[:, None]
    draft_rows = torch.stack([draft[zeros], draft[1 + first]], 1)[inside]
    target_rows = torch.stack([target[zeros], target[1 + first], target[1 + VOCAB + first * VOCAB + second]], 1)
    got = verify(
        target_rows[torch.arange(3, device=device) <= amounts[:, None]],
        drafted[inside],
        amounts.cumsum(0),
        draft_rows if own is None else None,
        draft_probs=None if own is None else law(draft_rows, **own),
        rule=rule,
        seeds=seeds,
        positions=zeros,
        lenience=lenience,
        backend=backend,
        **settings,
    )
    kept = got.num_accepted
    assert (kept <= amounts).all()
    x = torch.where(kept > 0, first, got.next_token)
    y = torch.where(kept > 1, second, torch.where(kept == 1, got.next_token, continued(target[1 + x], 1)))
    z = torch.where(kept == 2, got.next_token, continued(target[1 + VOCAB + x * VOCAB + y], 2))
    counts = ((x * VOCAB + y) * VOCAB + z).bincount(minlength=VOCAB**3).reshape(VOCAB, VOCAB, VOCAB)
    return counts, float(kept[amounts == 2].double().mean())


def p_value(rule="sampled", tables=None, **settings):
    tables = tables or Tables()
    counts, _ = emitted_triples(tables, rule, **settings)
    for name in ("lenience", "own"):
        settings.pop(name, None)
    return g_test(counts.flatten(), tables.joint(**settings).flatten())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rule", EXACT_RULES)
def test_three_tokens_of_a_ragged_batch_follow_the_target(rule, settings):
    assert p_value(rule, **settings) > FALSE_ALARM


@pytest.mark.parametrize("own", [{}, {"temperature": 0.6}, {"top_k": 3}], ids=["plain", "cool", "top-k"])
@pytest.mark.parametrize("rule", ["sampled", "block"])
def test_drafts_of_other_settings_follow_the_target_by_their_probabilities(rule, own):
    assert p_value(rule, own=own, temperature=0.8, top_p=0.8) > FALSE_ALARM


def test_a_draft_that_lies_about_its_probabilities_is_found_out():
    """A planted error for the test above: drawn by one law and verified by another, the target's law is lost."""
    assert p_value("sampled", own={"temperature": 0.2}, temperature=0.8) > FALSE_ALARM
    with mock.patch(f"{__name__}.law", lambda rows, **_: STOCK_LAW(rows)):
        counts, _ = emitted_triples(Tables(), "sampled", own={"temperature": 0.2}, temperature=0.8)
    assert g_test(counts.flatten(), Tables().joint(temperature=0.8).flatten()) < FALSE_ALARM


def inverted_ratio(p, q, tokens):
    return torch.nan_to_num(1 / STOCK_RATIO(p, q, tokens), nan=-1.0)


STOCK_RATIO, STOCK_DRAW, STOCK_LAWS = reference._ratio, reference._draw_next, reference._Batch.laws


def no_residual(batch, requests, p_share, q_share):
    batch.following[requests] = batch.own_tokens(requests, batch.accepted[requests])


def residual_not_renormalised(batch, requests, p_share, q_share):
    """Draws from the bare residual. The mass that it lacks falls on the last id."""
    STOCK_DRAW(batch, requests, p_share, q_share)
    rejected = requests[batch.accepted[requests] < batch.counts[requests]]
    p, q = batch.laws(rejected, batch.accepted[rejected])
    lost = torch.rand(len(rejected), generator=torch.Generator().manual_seed(0)) > (p - q).clamp(min=0).sum(-1)
    batch.following[rejected[lost]] = VOCAB - 1


def bonus_from_the_wrong_row(batch, requests, p_share, q_share):
    STOCK_DRAW(batch, requests, p_share, q_share)
    counts = batch.counts[requests]
    all_kept = requests[(batch.accepted[requests] == counts) & (counts > 0)]
    batch.following[all_kept] = batch.own_tokens(all_kept, batch.accepted[all_kept] - 1)


def filters_on_the_target_only(self, requests, position):
    settings = self.settings
    p, _ = STOCK_LAWS(self, requests, position)
    self.settings = settings._replace(top_p=torch.ones_like(settings.top_p))
    _, q = STOCK_LAWS(self, requests, position)
    self.settings = settings
    return p, q


@pytest.mark.parametrize(
    ("name", "wrong", "settings"),
    [
        ("_ratio", inverted_ratio, {}),
        ("_draw_next", no_residual, {}),
        ("_draw_next", residual_not_renormalised, {}),
        ("_draw_next", bonus_from_the_wrong_row, {}),
        ("_Batch.laws", filters_on_the_target_only, {"top_p": 0.6}),
    ],
    ids=["min(1, q/p)", "no residual", "not renormalised", "wrong bonus", "top-p on target only"],
)
def test_planted_errors_are_caught(name, wrong, settings, monkeypatch):
    assert p_value("sampled", **settings) > FALSE_ALARM
    owner = reference._Batch if name == "_Batch.laws" else reference
    monkeypatch.setattr(owner, name.split(".")[-1], wrong)
    assert p_value("sampled", **settings) < FALSE_ALARM


def test_acceptance_rate_is_the_overlap():
    tables = Tables()
    p, q = law(tables.target), law(tables.draft)
    first = torch.minimum(p[0], q[0]).sum()
    # Given that the first token was kept it is distributed as min(p, q).
    second = (torch.minimum(p[0], q[0]) * torch.minimum(p[1 : 1 + VOCAB], q[1:]).sum(-1)).sum()
    _, kept = emitted_triples(tables, "sampled")
    assert kept == pytest.approx(float(first + second), abs=4 * 1 / (DRAWS / 3) ** 0.5)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rule", ["sampled", "block", "lenient"])
def test_an_identical_draft_is_always_accepted(rule, settings):
    _, kept = emitted_triples(Tables(closeness=0.0), rule, **settings)
    assert kept == 2


def test_a_disjoint_draft_is_never_accepted():
    target = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]] * 2)
    draft = torch.tensor([[-torch.inf, -torch.inf, 0.0, 0.0]])
    for token in (2, 3):
        got = one(target, [token], draft)
        assert int(got.num_accepted) == 0 and int(got.next_token) in (0, 1)


def one(target, ids, draft=None, rule="sampled", seed=0, **settings):
    return verify(
        target, torch.tensor(ids, dtype=torch.int64), torch.tensor([len(ids)]), draft, rule=rule,
        seeds=torch.tensor([seed]), positions=torch.tensor([3]), **settings,
    )  # fmt: skip


def test_greedy_on_a_ragged_batch():
    best = torch.tensor([3, 1, 4, 1, 5, 2, 0])
    logits = torch.nn.functional.one_hot(best, VOCAB).float()
    # Rows propose 2, 0 and 2 tokens: target rows 0-2, 3 and 4-6.
    got = verify(logits, torch.tensor([3, 1, 5, 3]), torch.tensor([2, 2, 4]), rule="greedy")
    assert got.num_accepted.tolist() == [2, 0, 1] and got.next_token.tolist() == [4, 1, 2]


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_argmax_drafts_never_change_what_the_seed_emits(settings):
    """Whatever was drafted, the output equals that of sampling without a draft, token for token."""
    tables = Tables()
    outputs = set()
    for closeness in (0.0, 1.0, 5.0):
        drafts = Tables(closeness=closeness)
        drafts.target = tables.target
        counts, _ = emitted_triples(drafts, "argmax_draft", draws=600, **settings)
        outputs.add(tuple(counts.flatten().tolist()))
    assert len(outputs) == 1


def test_one_request_alone_and_in_a_batch_draws_the_same():
    tables = Tables()
    rows, q = tables.target[:3], tables.draft[:2]
    for rule in ("sampled", "argmax_draft", "block"):
        for seed in range(20):
            alone = one(rows, [0, 1], q, rule, seed)
            both = verify(
                torch.cat([rows, rows]), torch.tensor([0, 1, 0, 1]), torch.tensor([2, 4]), torch.cat([q, q]), rule=rule,
                seeds=torch.tensor([99, seed]), positions=torch.tensor([7, 3]),
            )  # fmt: skip
            assert alone.num_accepted[0] == both.num_accepted[1] and alone.next_token[0] == both.next_token[1]


def test_numerically_equal_laws_never_fail_on_an_empty_residual():
    p = torch.tensor([[0.1, 0.9], [0.5, 0.5]]).log()
    for seed in range(200):
        got = one(p, [0], torch.tensor([[0.1000001, 0.8999999]]).log(), seed=seed)
        assert int(got.num_accepted) in (0, 1) and int(got.next_token) in (0, 1)


def test_rows_without_a_law_emit_minus_one_and_keep_nothing():
    good = torch.randn(3, VOCAB)
    for broken in (torch.nan, torch.inf):
        bad = good.clone()
        bad[1, 2] = broken
        for rule in ("greedy", "argmax_draft", "sampled", "block"):
            ids = [int(good[0].argmax()), 0]
            got = one(bad, ids, good[:2], rule)
            kept = int(got.num_accepted)
            assert kept in (0, 1), rule
            assert int(got.next_token) == -1 or kept == 0
    assert int(one(torch.full((1, VOCAB), -torch.inf), [], good[:0]).next_token) == -1
    # Broken rows behind the first rejection are never looked at.
    late = good.clone()
    late[2] = torch.nan
    wrong = int(good[0].argmin())
    assert int(one(late, [wrong, 0], rule="greedy").next_token) == int(good[0].argmax())


def test_placeholders_are_rejected_and_the_token_is_the_targets_own():
    tables = Tables()
    for rule in ("greedy", "argmax_draft", "sampled", "block"):
        for seed in range(50):
            temperature = {} if rule == "greedy" else {"temperature": 1.0}
            got = one(tables.target[:2], [-1], tables.draft[:1], rule, seed, **temperature)
            own = tables.target[:1]
            expected = own.argmax(-1)
            if rule != "greedy":
                expected = sample(own, seeds=torch.tensor([seed]), positions=torch.tensor([3]))
            assert int(got.num_accepted) == 0 and int(got.next_token) == int(expected)


def test_refuses():
    logits = torch.randn(3, VOCAB)
    with pytest.raises(ValueError, match="unknown rule"):
        verify(logits, torch.tensor([1, 2]), torch.tensor([2]), rule="typical")
    with pytest.raises(ValueError, match="expected 3 target rows"):
        verify(logits[:2], torch.tensor([1, 2]), torch.tensor([2]), rule="greedy")
    with pytest.raises(ValueError, match="needs draft_logits"):
        one(logits, [1, 2])
    with pytest.raises(ValueError, match="needs seeds and positions"):
        verify(logits, torch.tensor([1, 2]), torch.tensor([2]), rule="argmax_draft")
    with pytest.raises(ValueError, match="0 < lenience <= 1"):
        one(logits, [1, 2], logits[:2], "lenient", lenience=0.0)
    with pytest.raises(ValueError, match="one value per row"):
        one(logits, [1, 2], logits[:2], temperature=torch.ones(2))


def expected_block_and_token(p, q):
    """E[kept] of both by summing over every draft of two tokens and every coin: prefix probability under q x chance.

    p and q are the laws of the first token and, behind each first token, of the second: [1 + VOCAB, VOCAB].
    """
    block = token = 0.0
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
    return block, token


@pytest.mark.parametrize("seed", range(20))
def test_block_verification_never_expects_fewer_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.rand(1 + VOCAB, VOCAB, generator=generator).softmax(-1).pow(3) for _ in range(2))
    block, token = expected_block_and_token(p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True))
    assert block >= token - 1e-9


@pytest.mark.parametrize("rule", ["block", "sampled"])
def test_as_many_tokens_are_kept_as_the_formula_says(rule):
    tables = Tables()
    block, token = expected_block_and_token(law(tables.target[: 1 + VOCAB]).double(), law(tables.draft).double())
    assert block > token + 0.02
    _, kept = emitted_triples(tables, rule, draws=120_000, seed=7)
    # The standard error of the mean of 40,000 counts of 0 to 2 is at most 0.005.
    assert kept == pytest.approx(block if rule == "block" else token, abs=0.015)


def test_lenience_is_lossy_accepts_more_and_is_exact_at_one():
    assert p_value("lenient") > FALSE_ALARM > p_value("lenient", lenience=0.5)
    assert emitted_triples(Tables(), "lenient", lenience=0.5)[1] > emitted_triples(Tables(), "lenient")[1] + 0.1


# The kernels: the same decisions as the definition, which the tests above hold to the target's law.

COUNTS = (3, 0, 4, 1)


def requests(vocab, dtype, device, spread=0.3, seed=0, counts=COUNTS):
    """Logits of a ragged batch whose draft is close to its target, in rows of a wider buffer."""
    generator = torch.Generator().manual_seed(seed)
    drafted, batch = sum(counts), len(counts)
    behind = torch.cat([torch.arange(n + 1) < n for n in counts])
    target = 2 * torch.randn(drafted + batch, vocab + 8, generator=generator)
    draft = target[behind] + spread * torch.randn(drafted, vocab + 8, generator=generator)
    target, draft = (rows.to(device=device, dtype=dtype)[:, :vocab] for rows in (target, draft))
    return target, draft, torch.tensor(counts, device=device).cumsum(0)


def decisions(rule, target, draft, cu, ids, backend, seed=5, given=False, **settings):
    keys = torch.arange(len(cu), device=target.device)
    got = verify(
        target,
        ids,
        cu,
        None if given else draft,
        draft_probs=draft if given else None,
        rule=rule,
        seeds=keys * 977 + seed,
        positions=keys,
        lenience=0.8,
        backend=backend,
        **settings,
    )
    return torch.stack(got).tolist()


@pytest.mark.parametrize("rule", ["greedy", "argmax_draft", "sampled", "lenient", "block"])
@pytest.mark.parametrize(
    ("vocab", "dtype"),
    [(17, torch.float32), (1000, torch.bfloat16), (8192, torch.float16), (32000, torch.bfloat16)],
    ids=["tiny", "one tile", "one group", "groups"],
)
def test_kernels_decide_as_the_definition(rule, vocab, dtype, device, poisoned_empty):
    target, draft, cu = requests(vocab, dtype, device)
    rows = torch.arange(draft.shape[0], device=device)
    ids = draft.argmax(-1)
    if rule not in ("greedy", "argmax_draft"):
        ids = sample(draft, seeds=rows, positions=rows, stream=noise.DRAFT)
    # The last request's only token is a placeholder.
    ids[-1] = -1
    for settings in ({}, {"temperature": torch.tensor([1.0, 0.0, 0.6, 1.3], device=device)}):
        wanted, got = (decisions(rule, target, draft, cu, ids, backend, **settings) for backend in ("torch", "fused"))
        assert got == wanted


@pytest.mark.parametrize("vocab", [49152, 151936, 262144])
def test_kernels_decide_as_the_definition_on_large_vocabularies(vocab, device):
    target, draft, cu = requests(vocab, torch.bfloat16, device, counts=(1,))
    rule = "argmax_draft" if vocab == 151936 else "sampled"
    ids = draft.argmax(-1)
    assert decisions(rule, target, draft, cu, ids, "fused") == decisions(rule, target, draft, cu, ids, "torch")


@pytest.mark.parametrize("rule", ["argmax_draft", "sampled", "block"])
def test_kernels_filter_as_the_definition(rule, device):
    target, draft, cu = requests(300, torch.float32, device)
    ids = draft.argmax(-1)
    settings = {"temperature": 0.8, "top_k": torch.tensor([5, 0, 300, 1], device=device), "top_p": 0.9, "min_p": 0.01}
    wanted, got = (decisions(rule, target, draft, cu, ids, backend, **settings) for backend in ("torch", "fused"))
    assert got == wanted


@pytest.mark.parametrize("rule", ["sampled", "block"])
def test_kernels_take_probabilities_as_the_definition(rule, device, poisoned_empty):
    target, draft, cu = requests(9000, torch.float32, device)
    probs = (draft / 0.6).softmax(-1)
    ids = probs.argmax(-1).int()
    # The last request's only token is a placeholder, and one row is no law.
    ids[-1] = -1
    temperature = torch.tensor([0.8, 0.8, 0.9, 0.0], device=device)
    settings = {"temperature": temperature, "top_k": 50, "given": True}
    wanted, got = (decisions(rule, target, probs, cu.int(), ids, backend, **settings) for backend in ("torch", "fused"))
    assert got == wanted
    # Logits whose settings are the target's are the same thing.
    assert decisions(rule, target, draft, cu, ids, "fused", temperature=0.6) == decisions(
        rule, target, probs, cu, ids, "fused", temperature=0.6, given=True
    )
    probs[4, 8] = torch.nan
    wanted, got = (decisions(rule, target, probs, cu, ids, backend, **settings) for backend in ("torch", "fused"))
    assert got == wanted


@pytest.mark.parametrize("rule", ["greedy", "argmax_draft", "sampled", "block"])
def test_kernels_treat_strange_rows_as_the_definition(rule, device):
    target, draft, cu = requests(40, torch.float32, device)
    ids = draft.argmax(-1)
    target[1, 3], target[4, 0], target[6, 7] = torch.nan, torch.inf, -torch.inf
    # Equal logits: the lowest id is the argmax.
    target[9], draft[3, 5] = 1.0, torch.nan
    target[2, :39] = -torch.inf
    wanted, got = (decisions(rule, target, draft, cu, ids, backend) for backend in ("torch", "fused"))
    assert got == wanted


def test_kernels_read_expanded_settings_row_by_row(device):
    target, draft, cu = requests(40, torch.float32, device)
    ids = draft.argmax(-1)
    expanded = torch.tensor(0.7, device=device).expand(len(COUNTS))
    wanted = decisions("sampled", target, draft, cu, ids, "fused", temperature=0.7)
    assert decisions("sampled", target, draft, cu, ids, "fused", temperature=expanded) == wanted


def test_the_kernels_follow_the_target_too(device):
    """Independent of the definition. The interpreter makes few draws, a GPU many."""
    draws = 9000 if device == "cuda" else 90
    tables = Tables(closeness=0.5, device=device)
    counts, _ = emitted_triples(tables, "sampled", draws=draws, backend="fused")
    first = counts.sum((1, 2))
    assert g_test(first, law(tables.target)[0]) > FALSE_ALARM
