"""A frozen target in less memory: offloaded it says the same, quantised nearly so, and training works with both."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
from tiny_models import FAMILIES, make_model, save

from specdistill import TrainConfig, load_model, train_draft
from specdistill.decoding import Sampling, generate_plain
from specdistill.errors import ConfigError, ModelError
from specdistill.models import families


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    # bitsandbytes packs nf4 in blocks of 64 on CPUs with AVX512-BF16, and fails on narrower layers there.
    save(make_model(layers=3, hidden=64), folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}"} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_layers_say_the_same(tmp_path, family):
    save(make_model(family, layers=2), tmp_path / "model")
    whole, away = load_model(str(tmp_path / "model")), load_model(str(tmp_path / "model"), keep="offloaded")
    layers = families.decoder_layers(away.base_model, away.config)
    assert all(each.is_meta for each in layers.parameters()), "they wait elsewhere"
    prompts = [[3, 7, 8, 4], [3, 9, 4]]
    one, two = (
        generate_plain(model, prompts, sampling=Sampling(), max_new_tokens=12, seeds=[1, 2]) for model in (whole, away)
    )
    assert [each.token_ids for each in one] == [each.token_ids for each in two]


@pytest.mark.parametrize(("kind", "limit"), [("int8", 1e-3), ("nf4", 3e-2)])
def test_quantised_layers_say_nearly_the_same_in_less_memory(files, kind, limit):
    whole, small = load_model(str(files / "target")), load_model(str(files / "target"), keep=kind)
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        p, q = (model.logits(model.hidden_states(ids)).float().log_softmax(-1) for model in (whole, small))
    assert 0 < float((p.exp() * (p - q)).sum(-1).mean()) < limit
    layers = [families.decoder_layers(model.base_model, model.config) for model in (whole, small)]
    size = [sum(each.numel() * each.element_size() for each in layer.parameters()) for layer in layers]
    assert size[1] < 0.4 * size[0]
    assert small.head_weight.dtype == torch.float32, "the losses multiply by the head"


@pytest.mark.parametrize("kind", ["offloaded", "int8", "nf4"])
def test_training_with_a_small_target(files, tmp_path, kind):
    config = TrainConfig.flat(
        target=str(files / "target"),
        draft=str(files / "draft"),
        output=str(tmp_path / "out"),
        prompts=str(files / "prompts.jsonl"),
        target_memory=kind,
        heldout_prompts=4,
        max_new_tokens=12,
        steps=30,
        eval_every=15,
        learning_rate=3e-3,
    )
    assert train_draft(config)["gain"]["sampled"]["ci95"][0] > 0


def test_a_missing_bitsandbytes_is_named_before_loading(files, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    config = TrainConfig.flat(
        target=str(files / "target"), draft=str(files / "draft"), output=str(tmp_path / "o"), target_memory="int8"
    )
    with pytest.raises(ModelError, match=r"specdistill\[quantised\]"):
        train_draft(config)


@pytest.mark.parametrize("other", [{"shard": "target", "method": "supervised-kd"}, {"target_server": "http://x"}])
def test_what_loads_no_whole_target_cannot_keep_it_small(other):
    with pytest.raises(ConfigError, match="--target-memory int8"):
        TrainConfig.flat(
            target="t", draft="d", output="o", target_memory="int8", **({"method": "supervised-kd"} | other)
        )
