"""Runs that make and train a head, end to end."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model
from tiny_runs import cut_config, history, train, write_folder

from specdistill import init_draft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = write_folder(tmp_path_factory.mktemp("heads"), {"target": make_model(layers=7)})
    init_draft(cut_config(place, place / "draft", kind="eagle3", layers=None, vocab_keep=40))
    return place


def test_init_draft_writes_a_head_of_the_ids_that_the_target_uses(folder):
    record = json.loads((folder / "draft" / "init_draft.json").read_text())
    weights = load_file(folder / "draft" / "model.safetensors")
    ids = weights["d2t"] + torch.arange(40)
    target = load_file(folder / "target" / "model.safetensors")
    assert torch.equal(weights["lm_head.weight"], target["lm_head.weight"][ids])
    assert 1 in ids, "the end of an answer is always kept"
    assert (record["kind"], record["layers"], record["head_size"]) == ("eagle3", [2, 3, 4], 40)
    assert (folder / "draft" / "tokenizer.json").is_file()


def test_a_head_is_trained_and_watched_by_tokens_per_call(folder, tmp_path):
    summary = train(folder, tmp_path / "out", steps=24, eval_every=8, unroll=2, keep="last")
    assert summary.watched == "tokens per target call"
    assert {"tokens_per_call", "acceptance_at_1", "acceptance_at_2", "sampled"} <= set(summary.gain)
    first, last = history(tmp_path / "out")[0], history(tmp_path / "out")[-1]
    assert last["heldout_tokens_per_call"] > first["heldout_tokens_per_call"] >= 1
    trained, start = (load_file(place / "model.safetensors") for place in (tmp_path / "out", folder / "draft"))
    assert trained.keys() == start.keys() and torch.equal(trained["d2t"], start["d2t"])
    assert not torch.equal(trained["fc.weight"], start["fc.weight"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert '"method": "eagle3"' in card and "assistant_model" not in card
