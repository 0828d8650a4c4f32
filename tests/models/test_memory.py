"""A frozen target in less memory: offloaded it says the same, quantised nearly so, and training works with both."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny_models import FAMILIES, make_model, save
from tiny_runs import any_config, train, write_folder

from specdistill import load_model
from specdistill.decoding import Sampling, generate_plain
from specdistill.errors import ConfigError, ModelError
from specdistill.models import families


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """bitsandbytes packs nf4 in blocks of 64 on CPUs with AVX512-BF16, and fails on narrower layers there."""
    models = {"target": make_model(layers=3, hidden=64), "draft": make_model(layers=1, seed=9)}
    return write_folder(tmp_path_factory.mktemp("memory"), models)


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_layers_say_the_same(tmp_path, family):
    save(make_model(family, layers=2), tmp_path / "model")
    loaded, away = load_model(str(tmp_path / "model")), load_model(str(tmp_path / "model"), keep="offloaded")
    layers = families.decoder_layers(away.base_model, away.config)
    assert all(weight.is_meta for weight in layers.parameters()), "they wait elsewhere"
    prompts = [[3, 7, 8, 4], [3, 9, 4]]
    one, two = (
        generate_plain(model, prompts, sampling=Sampling(), max_new_tokens=12, seeds=[1, 2]) for model in (loaded, away)
    )
    assert [answer.token_ids for answer in one] == [answer.token_ids for answer in two]


@pytest.mark.parametrize(("kind", "limit"), [("int8", 1e-3), ("nf4", 3e-2)])
def test_quantised_layers_say_nearly_the_same_in_less_memory(folder, kind, limit):
    loaded, small = load_model(str(folder / "target")), load_model(str(folder / "target"), keep=kind)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        exact, near = (model.logits(model.hidden_states(ids)).float().log_softmax(-1) for model in (loaded, small))
    assert 0 < float((exact.exp() * (exact - near)).sum(-1).mean()) < limit
    layers = [families.decoder_layers(model.base_model, model.config) for model in (loaded, small)]
    size = [sum(weight.numel() * weight.element_size() for weight in layer.parameters()) for layer in layers]
    assert size[1] < 0.4 * size[0]
    assert small.head_weight.dtype == torch.float32, "the losses multiply by the head"


@pytest.mark.parametrize("kind", ["offloaded", "int8", "nf4"])
def test_training_with_a_small_target(folder, tmp_path, kind):
    settings = {"heldout_prompts": 8, "steps": 30, "eval_every": 15}
    summary = train(folder, tmp_path / "out", target_memory=kind, **settings)
    assert summary.gain["sampled"].low > 0


def test_a_missing_bitsandbytes_is_named_before_loading(folder, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ModelError, match=r"specdistill\[quantised\]"):
        train(folder, tmp_path / "out", target_memory="int8")


@pytest.mark.parametrize("other", [{"shard": "target", "method": "supervised-kd"}, {"target_server": "http://x"}])
def test_what_loads_no_whole_target_cannot_keep_it_small(other):
    with pytest.raises(ConfigError, match="--target-memory int8"):
        any_config(**({"target_memory": "int8", "method": "supervised-kd"} | other))
