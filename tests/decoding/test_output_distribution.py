"""The whole decoder, not only its verification, emits the target's distribution: G-test on the first three tokens."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2
from tiny_models import make_model, make_tokenizer

from specdistill.decoding import ConfidenceLength, Sampling, SpeculativeDecoder
from specdistill.decoding.sampling import process

BATCH, REPEATS = 500, 10


@pytest.fixture(scope="module")
def pair():
    tokenizer = make_tokenizer(words=4)
    settings = {"tokenizer": tokenizer, "layers": 1, "vocab_size": 12, "scale": 6.0}
    target, draft = make_model(seed=0, **settings), make_model(seed=5, **settings)
    # Ids 9..11 are padding; no stop token, so that every sample has three tokens.
    for model in (target, draft):
        model.model.generation_config.eos_token_id = None
        model.model.config.eos_token_id = None
        model.tokenizer.eos_token = None
    return target, draft


def exact_law(target, sampling, prompt) -> torch.Tensor:
    """Probability of each of the vocab^3 continuations."""
    vocab = target.vocab_size
    triples = torch.cartesian_prod(*[torch.arange(vocab)] * 2)
    sequences = torch.cat([torch.tensor([prompt]).expand(len(triples), -1), triples], dim=1)
    with torch.no_grad():
        logits = target.logits(target.hidden_states(sequences))[:, len(prompt) - 1 :]
    steps = process(logits, sampling).softmax(-1)
    first = steps[0, 0]
    second = steps[::vocab, 1]
    return (first[:, None, None] * second[:, :, None] * steps[:, 2].reshape(vocab, vocab, vocab)).flatten()


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft", "block", "until doubt"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=4),
        Sampling(top_p=0.8),
        Sampling(temperature=1.3, top_k=6, top_p=0.9),
        Sampling(min_p=0.1),
    ],
    ids=["plain", "cool", "top-k", "top-p", "all", "min-p"],
)
def test_three_tokens_follow_the_target(pair, rule, sampling):
    target, draft = pair
    prompt = [5, 6, 7]
    # Stopping after a doubtful token must not bias it: the token itself stays in the proposal.
    length = ConfidenceLength(2, 0.3) if rule == "until doubt" else 2
    rule = "sampled" if rule == "until doubt" else rule
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=sampling, rule=rule)
    vocab = target.vocab_size
    counts = torch.zeros(vocab**3)
    accepted = proposed = 0
    for repeat in range(REPEATS):
        seeds = [repeat * BATCH + row for row in range(BATCH)]
        for result in decoder.generate([prompt] * BATCH, max_new_tokens=3, seeds=seeds):
            a, b, c = result.token_ids
            counts[(a * vocab + b) * vocab + c] += 1
            accepted += sum(entry.accepted for entry in result.rounds)
            proposed += sum(entry.proposed for entry in result.rounds)
    assert 0.05 < accepted / proposed < 0.95, "the draft must be accepted sometimes and rejected sometimes"
    assert p_value(counts, exact_law(target, sampling, prompt).double()) > 1e-5


def p_value(counts, law) -> float:
    """G-test of observed triples; impossible ones must not occur at all."""
    if counts[law == 0].sum() > 0:
        return 0.0
    # Rare outcomes are pooled: the test's approximation needs at least 5 expected draws in each cell.
    wanted = law * counts.sum()
    common = wanted >= 5
    cells = torch.cat([counts[common].double(), counts[~common].sum()[None].double()])
    expected = torch.cat([wanted[common], wanted[~common].sum()[None]])
    cells, expected = cells[expected > 0], expected[expected > 0]
    statistic = 2 * torch.where(cells > 0, cells * (cells / expected).log(), 0).sum()
    return float(chi2.sf(float(statistic), len(cells) - 1))


@pytest.mark.parametrize("skips", [False, True])
def test_a_skipped_bonus_token_is_caught(pair, skips):
    """Planted: the token behind a draft that was kept whole goes into the caches but not into the answer."""
    target, draft = pair
    prompt, vocab = [5, 6, 7], target.vocab_size
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=1, sampling=Sampling())
    counts = torch.zeros(vocab**3)
    for result in decoder.generate([prompt] * 3000, max_new_tokens=8, seeds=list(range(3000))):
        answer = result.token_ids[:1]
        rest = result.token_ids[1:]
        for entry in result.rounds:
            emitted, rest = rest[: entry.emitted], rest[entry.emitted :]
            answer += emitted[:1] if skips else emitted
        a, b, c = answer[:3]
        counts[(a * vocab + b) * vocab + c] += 1
    p = p_value(counts, exact_law(target, Sampling(), prompt).double())
    assert (p < 1e-5) == skips
