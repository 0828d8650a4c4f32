"""Noise, filters and sampling: reproducible, of the right distribution, and the same in kernels as by definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from specdistill_kernels import filter_threshold, noise, sample
from specdistill_kernels.noise import philox

FILTERS = {
    "none": {},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.9},
    "min-p": {"min_p": 0.05},
    "all": {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def numbers(*values):
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        (0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (0xFFFFFFFF, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    ],
)
def test_philox_gives_the_published_answers(word, expected):
    """Known-answer vectors of Random123 (philox4x32 10): counter and key all zeros, and all ones."""
    seed = numbers(0 if word == 0 else -1)
    words = philox(seed, np.array([word]), numbers(word), numbers(word), word)
    assert words[:, 0, 0].tolist() == expected


def test_noise_is_standard_gumbel_and_independent_along_every_key():
    rows = torch.arange(20)
    zeros = torch.zeros_like(rows)
    drawn = {
        "seed": noise.gumbel(rows, zeros, zeros, noise.TARGET, 9000),
        "position": noise.gumbel(zeros, rows, zeros, noise.TARGET, 9000),
        "round": noise.gumbel(zeros, zeros, rows, noise.DRAFT, 9000),
    }
    for samples in drawn.values():
        assert stats.kstest(samples.flatten().numpy(), "gumbel_r").pvalue > 1e-4
        correlation = torch.corrcoef(samples) - torch.eye(20)
        assert correlation.abs().max() < 5 / 9000**0.5
    # A shorter vocabulary sees the same numbers.
    assert torch.equal(drawn["seed"][:, :100], noise.gumbel(rows, zeros, zeros, noise.TARGET, 100))
    coins = noise.coins(torch.arange(20000), torch.zeros(20000).long(), torch.zeros(20000).long())
    assert stats.kstest(coins.numpy(), "uniform").pvalue > 1e-4 and coins.min() > 0 and coins.max() < 1


def test_the_winners_noise_keeps_its_digits():
    """Rounding would make ties among the largest values of a large vocabulary, and ties favour low ids."""
    drawn = noise.gumbel(numbers(3), numbers(0), numbers(0), noise.TARGET, 262144)[0]
    best = drawn.topk(1000).values
    assert len(best.unique()) == 1000


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
def test_samples_follow_the_filtered_law(filters):
    logits = 2 * torch.randn(1, 60, generator=torch.Generator().manual_seed(0))
    lowest = filter_threshold(logits, **filters)
    law = (logits.masked_fill(logits < lowest, -torch.inf) / filters.get("temperature", 1.0)).softmax(-1)[0]
    rows = torch.arange(20000)
    drawn = sample(logits.expand(20000, -1), seeds=rows, positions=torch.zeros_like(rows), **filters)
    counts = drawn.bincount(minlength=60)
    assert counts[law == 0].sum() == 0
    common = law * 20000 >= 5
    seen = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    wanted = torch.cat([law[common], law[~common].sum()[None]]).double() * 20000
    keep = wanted > 1e-6
    assert stats.chisquare(seen[keep], wanted[keep] * seen.sum() / wanted[keep].sum()).pvalue > 1e-5


def test_thresholds_by_hand():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def kept(**filters):
        return int((logits >= filter_threshold(logits, **filters)[:, None]).sum())

    assert kept() == 4 and kept(top_k=2) == 2 and kept(top_k=99) == 4 and kept(temperature=0.0, top_k=1) == 4
    # 0.4 + 0.3 reaches 0.6 with the second id, which is kept because the mass before it is below.
    assert kept(top_p=0.6) == 2 and kept(top_p=0.01) == 1
    # top-p measures what top-k left: 0.4 / 0.7 is 0.57.
    assert kept(top_p=0.55) == 2 and kept(top_p=0.55, top_k=2) == 1
    assert kept(min_p=0.6) == 2 and kept(min_p=0.2) == 4
    # Ties with the last one kept stay: a threshold can't split them.
    assert int((torch.zeros(1, 7) >= filter_threshold(torch.zeros(1, 7), top_k=3)[:, None]).sum()) == 7


def test_top_p_looks_beyond_the_first_thousand():
    logits = 0.01 * torch.randn(2, 5000, generator=torch.Generator().manual_seed(0))
    kept = (logits >= filter_threshold(logits, top_p=0.9)[:, None]).sum(-1)
    assert ((kept > 4400) & (kept < 4600)).all()


def test_refuses():
    with pytest.raises(ValueError, match="needs seeds and positions"):
        sample(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"expected logits \[rows, vocab\]"):
        sample(torch.zeros(5), seeds=numbers(0), positions=numbers(0))
    with pytest.raises(ValueError, match="one value per row"):
        filter_threshold(torch.zeros(2, 5), top_k=torch.tensor([1]))


def test_undefined_rows_give_minus_one(device):
    logits = torch.zeros(4, 9, device=device)
    logits[0, 3], logits[1, 0], logits[2] = torch.nan, torch.inf, -torch.inf
    rows = torch.arange(4, device=device)
    for backend in ("torch", "fused"):
        for temperature in (0.0, 1.0):
            got = sample(logits, seeds=rows, positions=rows, temperature=temperature, backend=backend).tolist()
            assert got[:3] == [-1, -1, -1] and 0 <= got[3] < 9
            # Equal logits: greedy takes the lowest id.
            assert temperature or got[3] == 0


@pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("vocab", [17, 1000, 9000], ids=["tiny", "block", "multi-block"])
def test_kernels_filter_and_sample_as_the_definition(vocab, filters, device, poisoned_empty):
    dtype = DTYPES[vocab % 3]
    wide = 3 * torch.randn(3, vocab + 5, generator=torch.Generator().manual_seed(vocab)).to(device)
    logits = wide.to(dtype)[:, :vocab]
    # -0.0 and 0.0 are one value, -inf is probability 0.
    logits[0, :3], logits[1, 1:4], logits[2, 5] = 0.0, -0.0, -torch.inf
    rows = torch.arange(3, device=device)
    masks, tokens = [], []
    for backend in ("torch", "fused"):
        lowest = filter_threshold(logits, backend=backend, **filters)
        masks.append(logits.float() >= lowest[:, None])
        tokens.append(sample(logits, seeds=977 * rows, positions=rows + 2, backend=backend, **filters))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(tokens[0], tokens[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [32000, 49152, 151936, 262144])
def test_kernels_sample_as_the_definition_on_large_vocabularies(vocab, dtype, device):
    logits = 3 * torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab)).to(device=device, dtype=dtype)
    rows = torch.arange(2, device=device)
    for settings in ({}, {"temperature": torch.tensor([0.0, 0.5], device=device)}, {"stream": noise.DRAFT}):
        wanted, got = (
            sample(logits, seeds=rows, positions=rows, rounds=rows, backend=backend, **settings)
            for backend in ("torch", "fused")
        )
        assert torch.equal(wanted, got)


def test_row_addresses_are_64_bit_wide(device):
    """Row 3 begins beyond 2**31 entries; the pages in between are never touched."""
    if device != "cpu":
        pytest.skip("needs a lazily mapped buffer")
    buffer = torch.empty(3 * 2**30, dtype=torch.float16).as_strided((4, 64), (2**30 - 64, 1))
    buffer.copy_(torch.arange(64).flip(0).expand(4, -1))
    assert sample(buffer, temperature=0.0, backend="fused").tolist() == [0] * 4
    assert torch.isinf(filter_threshold(buffer, backend="fused")).all()
