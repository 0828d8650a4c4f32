"""The proof that a model can be rolled back: it must catch what would make decoding inexact, and be made once."""

from __future__ import annotations

import json

import pytest
import torch
import wild_checkpoints as wild
from family_models import family_model
from tiny_models import make_model, save

from specdistill.decoding import Sampling, SpeculativeDecoder, cached_model, generate_plain, masks, proof, ragged_cache
from specdistill.errors import ModelError
from specdistill.models import load_model
from specdistill.models.packed import pack


def proven(kind):
    return proof.prove(family_model(kind))


@pytest.mark.parametrize(
    ("kind", "layers"), [("mixtral", "sliding"), ("llama4_text", "chunked"), ("gemma2", "sliding")]
)
def test_a_window_that_is_not_read_is_caught(monkeypatch, kind, layers):
    assert proven(kind).rolls_back
    unseen = masks._unseen
    monkeypatch.setattr(masks, "_unseen", lambda kind, *rest: unseen("full_attention", *rest))
    found = proven(kind)
    assert not found.decodes and "differs by" in found.reason and layers in found.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_at_the_wrong_place_are_caught(monkeypatch, dtype):
    write = ragged_cache._write
    monkeypatch.setattr(ragged_cache, "_write", lambda buffer, states, at: write(buffer, states, (at - 1).clamp(min=0)))
    model = family_model("llama")
    model.model.to(dtype)
    found = proof.prove(model)
    assert not found.rolls_back and "position" in found.reason


def test_a_rollback_that_drops_too_little_is_caught(monkeypatch):
    def keeps_all(self, counts):
        self.lengths = [length + max(counts) for length in self.lengths]

    monkeypatch.setattr(cached_model.CachedModel, "advance", keeps_all)
    assert not proven("llama").rolls_back


def test_states_of_padded_prompts_are_caught(monkeypatch):
    """Recurrent layers that read padding: what every row's own pass over its prompt avoids."""

    def together(self, rows):
        padded = torch.tensor([ids + [0] * (max(map(len, rows)) - len(ids)) for ids in rows])
        hidden = self._pass(padded)
        self.advance([len(ids) for ids in rows])
        return torch.stack([hidden[row, len(ids) - 1] for row, ids in enumerate(rows)])

    monkeypatch.setattr(cached_model.CachedModel, "read", together)
    found = proven("qwen3_5_text")
    assert not found.decodes and "differs by" in found.reason


def test_windows_are_as_long_as_before():
    model = make_model("mistral")
    model.config.sliding_window = 100
    assert proof.prove(model).rolls_back and model.config.sliding_window == 100


def test_what_can_not_be_rolled_back_is_refused_with_the_reason_and_still_writes():
    model = family_model("gpt_neo")
    with pytest.raises(ModelError) as refusal:
        SpeculativeDecoder(model, model, num_draft_tokens=2, sampling=Sampling(temperature=0.0))
    text = str(refusal.value)
    assert "\n" not in text and "tiny-gpt_neo" in text and "of the largest state" in text and "bench --engine" in text
    assert generate_plain(model, [[5, 6]], sampling=Sampling(), max_new_tokens=3, seeds=[0])[0].token_ids


def test_a_proof_is_made_once_for_a_checkpoint_and_again_when_its_files_change(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(proof, "_KEPT_FROM", 0)
    made = []
    original = proof._made
    monkeypatch.setattr(proof, "_made", lambda model: made.append(model.name) or original(model))
    directory = save(make_model(), tmp_path / "model")
    for _ in range(2):
        assert proof.prove(load_model(str(directory))).rolls_back
    assert len(made) == 1, "the second comes from the file"
    (file,) = (tmp_path / "cache" / "proofs").iterdir()
    file.write_text(json.dumps({"decodes": True, "rolls_back": False, "reason": "planted"}))
    assert proof.prove(load_model(str(directory))).reason == "planted"
    save(make_model(seed=1), directory)
    assert proof.prove(load_model(str(directory))).rolls_back and len(made) == 2
    assert proof.prove(load_model(str(directory), dtype=torch.bfloat16)).rolls_back and len(made) == 3


def test_a_proof_is_made_again_for_an_edited_configuration(monkeypatch, tmp_path):
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(proof, "_KEPT_FROM", 0)
    directory = save(make_model(), tmp_path / "model")
    proof.prove(load_model(str(directory)))
    wild.change_json(directory / "config.json", max_position_embeddings=128)
    proof.prove(load_model(str(directory)))
    assert len(list((tmp_path / "cache" / "proofs").iterdir())) == 2


def test_an_error_of_today_is_not_kept(monkeypatch, tmp_path):
    def broken(*arguments, **named):
        raise RuntimeError("a driver's fault")

    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(proof, "_KEPT_FROM", 0)
    directory = save(make_model(), tmp_path / "model")
    with monkeypatch.context() as patch:
        patch.setattr(cached_model.CachedModel, "_pass", broken)
        assert "a driver's fault" in proof.prove(load_model(str(directory))).reason
    assert proof.prove(load_model(str(directory))).rolls_back


@pytest.mark.parametrize("kind", ["llama", "gemma2", "mixtral", "deepseek_v3", "qwen3_5_text"])
def test_half_precision_is_no_difference(kind):
    model = family_model(kind)
    model.model.to(torch.bfloat16)
    assert proof.prove(model).decodes, proof.prove(model).reason


def test_a_head_that_no_factor_explains_is_refused():
    """ModernBERT has layers between the hidden states and the head."""
    with pytest.raises(ModelError, match=r"gets its logits in a way that is not known: .* differs from them by"):
        proof.prove(family_model("modernbert-decoder"))


@pytest.mark.parametrize(
    ("kind", "setting", "value", "factor"),
    [("cohere", "logit_scale", 0.25, 0.25), ("granite", "logits_scaling", 8.0, 0.125), ("llama", "use_cache", True, 1)],
)
def test_the_factor_of_the_logits_is_the_configurations(kind, setting, value, factor):
    assert family_model(kind, **{setting: value}).logit_scale == factor


def test_packed_to_int8_a_model_is_lossy_and_keeps_its_cache():
    model = make_model()
    pack(model, "int8")
    assert proof.prove(model).rolls_back
    recurrent = family_model("qwen3_5_text")
    pack(recurrent, "int8")
    assert not proof.prove(recurrent).rolls_back


def test_memory_that_ends_is_no_difference(monkeypatch):
    def full(*arguments, **named):
        raise MemoryError

    model = make_model()
    monkeypatch.setattr(cached_model.CachedModel, "_pass", full)
    with pytest.raises(MemoryError):
        proof.prove(model)
    monkeypatch.undo()
    assert proof.prove(model).rolls_back
