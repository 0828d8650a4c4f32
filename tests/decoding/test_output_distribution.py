"""The whole decoder, not only its verification, emits the target's distribution: G-test on the first three tokens."""

from __future__ import annotations

import pytest
import torch
from output_law import endless_pair, exact_law, p_value

from specdistill.decoding import ConfidenceLength, Sampling, SpeculativeDecoder

BATCH, REPEATS = 500, 10


@pytest.fixture(scope="module")
def pair():
    return endless_pair()


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
