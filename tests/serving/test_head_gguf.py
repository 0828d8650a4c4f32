"""The file that llama.cpp loads as EAGLE-3, read back by gguf's own reader; `make test-engines` runs it there."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from head_drafts import IDS, make_head
from tiny_models import make_model

from specdistill.errors import ModelError
from specdistill.serving import gguf_writer, head_gguf

ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def served(monkeypatch):
    """Stands for the target's .gguf file: its tokenizer has the 65 tokens of tiny models."""
    monkeypatch.setattr(gguf_writer, "served_tokenizer", lambda draft, file: ({}, [f"t{id_}" for id_ in range(65)]))


def written(draft, place, kind="float32"):
    head_gguf.write(draft, place / "target.gguf", place / "head.gguf", kind)
    reader = gguf.GGUFReader(place / "head.gguf")
    return {name: field.contents() for name, field in reader.fields.items()}, {one.name: one for one in reader.tensors}


def test_the_file_says_what_is_read_and_which_ids_are_proposed(served, tmp_path):
    target = make_model(layers=7)
    fields, tensors = written(make_head(target), tmp_path)
    assert fields["general.architecture"] == "eagle3"
    assert fields["eagle3.extract_layers"] == fields["eagle3.target_layers"] == [2, 3, 4]
    assert (fields["eagle3.target_hidden_size"], fields["eagle3.block_count"]) == (32, 1)
    assert fields["eagle3.norm_before_residual"] is False
    assert tensors["d2t"].data.tolist() == IDS, "ids themselves, where checkpoints hold distances"
    assert "token_embd.weight" not in tensors and "rope_freqs.weight" not in tensors


def test_queries_and_keys_stand_in_neighbouring_pairs(served, tmp_path):
    """Heads of 8: llama.cpp rotates rows 0 and 1, where transformers rotates rows 0 and 4."""
    draft = make_head(make_model(layers=7))
    _, tensors = written(draft, tmp_path)
    attention = draft.head.layer.self_attn
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    for name, projection, heads in (("attn_q", attention.q_proj, 4), ("attn_k", attention.k_proj, 2)):
        rows = [8 * head + row for head in range(heads) for row in order]
        assert np.array_equal(tensors[f"blk.0.{name}.weight"].data, projection.weight.detach().numpy()[rows])
    plain = {"blk.0.attn_v": attention.v_proj, "blk.0.attn_output": attention.o_proj, "fc": draft.head.fc}
    plain |= {
        "output": draft.head.lm_head,
        "output_norm": draft.head.norm,
        "blk.0.ffn_down": draft.head.layer.mlp.down_proj,
    }
    plain |= {"blk.0.attn_norm": draft.head.layer.input_layernorm, "blk.0.attn_norm_2": draft.head.layer.hidden_norm}
    for name, module in plain.items():
        assert np.array_equal(tensors[f"{name}.weight"].data, module.weight.detach().numpy()), name


def test_an_own_embedding_and_a_scaled_rope_are_written(served, tmp_path):
    draft = make_head(make_model(layers=7), range(65), own_embedding=True)
    draft.head.config.rope_parameters = ROPE
    fields, tensors = written(draft, tmp_path)
    assert np.array_equal(tensors["token_embd.weight"].data, draft.head.embed_tokens.weight.detach().numpy())
    assert np.array_equal(tensors["rope_freqs.weight"].data, gguf_writer.rope_factors(draft.head.config))
    assert fields["eagle3.rope.freq_base"] == 500000.0
    assert "d2t" not in tensors, "all ids are proposed, in their order"


@pytest.mark.parametrize("tokens", [65, 70, 80])
def test_an_own_embedding_has_a_row_for_each_token_of_the_served_file(tmp_path, monkeypatch, tokens):
    """llama.cpp loads no other; a checkpoint's vocabulary is often padded, and a .gguf file's may end elsewhere."""
    monkeypatch.setattr(gguf_writer, "served_tokenizer", lambda draft, file: ({}, [f"t{id_}" for id_ in range(tokens)]))
    draft = make_head(make_model(layers=7, vocab_size=70), own_embedding=True)
    fields, tensors = written(draft, tmp_path)
    rows, own = tensors["token_embd.weight"].data, draft.head.embed_tokens.weight.detach().numpy()
    assert rows.shape == (tokens, 32) and fields["eagle3.vocab_size"] == tokens
    assert np.array_equal(rows[:70], own[:tokens]) and not rows[70:].any()


def test_ids_beyond_the_served_tokenizer_are_refused(served, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_writer, "served_tokenizer", lambda draft, file: ({}, ["t"] * 40))
    with pytest.raises(ModelError, match=r"proposes id 64, and the tokenizer of .* ends at 39"):
        written(make_head(make_model(layers=7)), tmp_path)
    assert not (tmp_path / "head.gguf").exists()
