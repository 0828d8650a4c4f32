"""Longrope and Llama 4's query scaling: rows of a batch that cross the border decode as each does alone."""

from __future__ import annotations

import pytest
import torch
from family_models import family_model
from tiny_models import perturbed

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain, position_scaling
from specdistill.decoding.cached_model import CachedModel

GREEDY = Sampling(temperature=0.0)
PROMPTS = [list(range(5, 17)), [20, 21], list(range(30, 50)), [9, 8, 7]]
NEW = 24
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 1.0,
}
SCALED = {
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16},
    "llama4_text": {"floor_scale": 4, "attn_scale": 2.0},
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 2.0,
        }
    },
    "llama": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
}


def alone(model):
    """Greedy answers of `generate`, one prompt at a time."""
    rows = [
        model.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), pad_token_id=0,
            max_new_tokens=NEW, do_sample=False, eos_token_id=1,
        )
        for prompt in PROMPTS
    ]  # fmt: skip
    return [row[0, len(prompt) :].tolist() for row, prompt in zip(rows, PROMPTS, strict=True)]


def written(results):
    return [result.token_ids for result in results]


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("gamma", [1, 4])
def test_rows_that_cross_the_border_decode_as_alone(kind, gamma):
    target = family_model(kind, **SCALED[kind])
    wanted = alone(target)
    settings = {"max_new_tokens": NEW, "seeds": [0, 1, 2, 3]}
    assert written(generate_plain(target, PROMPTS, sampling=GREEDY, **settings)) == wanted
    for draft in (perturbed(target, 0.02), target):
        decoder = SpeculativeDecoder(target, draft, num_draft_tokens=gamma, sampling=GREEDY)
        results = decoder.generate(PROMPTS, **settings)
        assert written(results) == wanted
    assert all(entry.accepted == entry.proposed for result in results for entry in result.rounds)


@pytest.mark.parametrize("kind", ["phi3", "llama4_text"])
def test_without_this_the_rows_of_a_batch_disturb_each_other(monkeypatch, kind):
    target = family_model(kind, **SCALED[kind])
    wanted = alone(target)
    monkeypatch.setattr("specdistill.decoding.recomputed.cached", CachedModel)
    settings = {"max_new_tokens": NEW, "seeds": [0, 1, 2, 3]}
    assert written(generate_plain(target, PROMPTS, sampling=GREEDY, **settings)) != wanted


def test_the_border_is_read_from_the_configuration():
    border = position_scaling.longrope_border
    assert border(family_model("phi3", **SCALED["phi3"]).config) == 16
    assert border(family_model("phi3").config) is None


def test_rows_that_stay_keep_their_own_side_of_the_border():
    reader = position_scaling.cached(family_model("phi3", **SCALED["phi3"]), 3, 40)
    reader.read([list(range(5, 25)), [20, 21], list(range(30, 50))])
    reader._long = [True, False, True]
    reader.select([1, 2])
    assert reader._long == [False, True]
