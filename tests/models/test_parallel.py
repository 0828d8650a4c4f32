"""The mask token of parallel drafts: where it is read and written, and what is refused."""

from __future__ import annotations

import json

import pytest
import wild_checkpoints as wild
from tiny_models import make_config, make_model, save
from transformers import AutoConfig, XLMConfig

from specdistill.errors import ModelError
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import load_model


def test_it_survives_saving_and_loading(tmp_path):
    model = make_model(vocab_size=72)
    assert model.parallel is None
    ParallelDrafting(mask_id=70, trained_tokens=8).write_to(model.config)
    save(model, tmp_path / "draft")
    stored = json.loads((tmp_path / "draft/config.json").read_text())
    assert (stored["pard_token"], stored["parallel_draft_tokens"]) == (70, 8)
    loaded = load_model(str(tmp_path / "draft"), "draft")
    assert loaded.parallel == ParallelDrafting(70, 8)
    # The mask token is beyond the tokenizer's ids: nothing ever proposes it.
    assert loaded.vocab_size == 65


@pytest.mark.parametrize("key", ["mask_token_id", "pard_token", "ptd_token_id"])
def test_vllms_names_are_read_and_the_number_of_tokens_is_then_unknown(key):
    config = make_config()
    setattr(config, key, 7)
    assert ParallelDrafting.of_config(config, "--draft x") == ParallelDrafting(7, None)


def test_a_family_with_a_mask_token_of_its_own_drafts_one_by_one():
    assert ParallelDrafting.of_config(XLMConfig(mask_token_id=3), "--draft x") is None


def test_writing_leaves_one_name_only(tmp_path):
    config = make_config()
    config.ptd_token_id, config.parallel_draft_tokens = 7, 12
    ParallelDrafting(9).write_to(config)
    config.save_pretrained(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert not hasattr(read, "ptd_token_id") and not hasattr(read, "parallel_draft_tokens")
    assert ParallelDrafting.of_config(read, "--draft x") == ParallelDrafting(9, None)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pard_token": 65}, "pard_token 65 in its config.json, which must be one of the embedding's ids, 0 to 64"),
        ({"pard_token": -1}, "pard_token -1"),
        ({"pard_token": "<mask>"}, "pard_token '<mask>'"),
        ({"pard_token": True}, "pard_token True"),
        (
            {"pard_token": 3, "ptd_token_id": 4},
            "different mask tokens in its config.json: pard_token 3, ptd_token_id 4",
        ),
        ({"pard_token": 3, "parallel_draft_tokens": 0}, "parallel_draft_tokens 0 in its config.json"),
        (
            {"pard_token": 3, "parallel_draft_tokens": 1},
            "parallel_draft_tokens 1 in its config.json, which must be from 2 to 256",
        ),
        # A launch that asked for a million draft tokens was printed, and bench failed inside the timing of steps.
        ({"pard_token": 3, "parallel_draft_tokens": 10**6}, "parallel_draft_tokens 1000000 in its config.json"),
    ],
)
def test_impossible_values_are_refused_before_weights_are_read(tmp_path, keys, said):
    directory = save(make_model(layers=1), tmp_path / "draft")
    wild.change_json(directory / "config.json", **keys)
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError) as caught:
        load_model(str(directory), "draft")
    assert said in str(caught.value) and f"--draft {directory}" in str(caught.value)
    assert "\n" not in str(caught.value)
