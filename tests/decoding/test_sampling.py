"""Temperature and filters."""

from __future__ import annotations

import pytest
import torch

from specdistill.decoding.sampling import Sampling, row_generators
from specdistill.errors import ConfigError

LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def kept(sampling, logits=LOGITS):
    return torch.isfinite(sampling.process(logits))[0].tolist()


def test_filters_keep_the_right_ids():
    assert kept(Sampling()) == [True] * 4
    assert kept(Sampling(top_k=2)) == [True, True, False, False]
    assert kept(Sampling(top_k=99)) == [True] * 4
    # 0.4 + 0.3 reaches 0.6 with the second id, which is kept because the mass before it is below.
    assert kept(Sampling(top_p=0.6)) == [True, True, False, False]
    assert kept(Sampling(top_p=0.01)) == [True, False, False, False]
    # top-p is applied to what temperature left: a hot distribution needs more ids for the same mass.
    assert sum(kept(Sampling(temperature=0.2, top_p=0.9))) < sum(kept(Sampling(temperature=5.0, top_p=0.9)))


def test_temperature_scales_and_zero_is_greedy():
    torch.testing.assert_close(Sampling(temperature=0.5).process(LOGITS).softmax(-1)[0, 0], torch.tensor(0.16 / 0.30))
    greedy = Sampling(temperature=0.0, top_k=2, top_p=0.5)
    assert greedy.greedy and greedy.pick(greedy.process(LOGITS), []).tolist() == [0]


def test_half_precision_is_processed_in_float32():
    assert Sampling(temperature=0.7).process(LOGITS.bfloat16()).dtype == torch.float32


def test_pick_follows_the_distribution_and_its_own_generator():
    generators = row_generators(list(range(4000)), torch.device("cpu"))
    picked = Sampling().pick(LOGITS.expand(4000, -1), generators)
    shares = picked.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.04, rtol=0)
    again = Sampling().pick(LOGITS.expand(2, -1), row_generators([3999, 0], torch.device("cpu")))
    assert again.tolist() == [picked[3999], picked[0]]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": -1}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
    ],
)
def test_refuses(settings, text):
    with pytest.raises(ConfigError, match=text):
        Sampling(**settings)
