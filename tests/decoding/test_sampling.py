"""Temperature and filters."""

from __future__ import annotations

import pytest
import torch

from specdistill.decoding.sampling import Keys, Sampling, pick, process
from specdistill.errors import ConfigError, ModelError

LOGITS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def keys(seeds):
    return Keys(torch.tensor(list(seeds)), torch.zeros(len(seeds), dtype=torch.int64))


def kept(sampling, logits=LOGITS):
    return torch.isfinite(process(logits, sampling))[0].tolist()


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
    torch.testing.assert_close(process(LOGITS, Sampling(temperature=0.5)).softmax(-1)[0, 0], torch.tensor(0.16 / 0.30))
    greedy = Sampling(temperature=0.0, top_k=2, top_p=0.5)
    assert greedy.greedy and pick(LOGITS, greedy, keys([0])).tolist() == [0]


def test_half_precision_is_processed_in_float32():
    assert process(LOGITS.bfloat16(), Sampling(temperature=0.7)).dtype == torch.float32


def test_pick_follows_the_distribution_and_its_own_seed():
    picked = pick(LOGITS.expand(4000, -1), Sampling(), keys(range(4000)))
    shares = picked.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.3, 0.2, 0.1]), atol=0.04, rtol=0)
    again = pick(LOGITS.expand(2, -1), Sampling(), keys([3999, 0]))
    assert again.tolist() == [picked[3999], picked[0]]
    from_draft = pick(LOGITS.expand(4000, -1), Sampling(), keys(range(4000)), from_draft=True)
    # Noise of another stream: agreement by chance alone is 0.4^2 + 0.3^2 + 0.2^2 + 0.1^2.
    assert abs(float((from_draft == picked).float().mean()) - 0.3) < 0.04


def test_undefined_logits_are_an_error_that_names_the_remedy():
    with pytest.raises(ModelError, match="NaN or infinite"):
        pick(torch.tensor([[0.0, torch.nan]]), Sampling(), keys([0]))


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
