"""EAGLE-3 heads: how one begins, what a pass gives, and the files that engines read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model
from transformers.cache_utils import DynamicCache

from specdistill.errors import IncompatibleModelsError, ModelError
from specdistill.models.eagle3 import (
    Anchors,
    AuxStates,
    Eagle3Head,
    default_aux_layers,
    head_from_target,
    load_head,
    save_head,
    unrolled_states,
)

IDS = [1, 5, 9, 17, 33, 64]
TEXT = torch.tensor([[5, 9, 17, 33, 40, 41, 9, 17, 33, 8]])


def make_head(target, ids=IDS, *, seed: int = 0, noise: float = 0.3, **settings) -> Eagle3Head:
    """A head that is no copy of its target any more."""
    head = head_from_target(target, ids, **settings)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * noise * parameter.shape[1] ** -0.5)
    return head


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_head_begins_with_parts_of_its_target(family):
    target = make_model(family, layers=7)
    head = head_from_target(target, IDS)
    last, own = target.base_model.layers[-1], head.layer
    assert head.aux_layers == (2, 3, 4)
    assert torch.equal(head.lm_head.weight, target.head_weight[IDS])
    assert torch.equal(head.norm.weight, target.base_model.norm.weight)
    assert torch.equal(own.self_attn.q_proj.weight[:, 32:], last.self_attn.q_proj.weight)
    assert torch.equal(own.self_attn.q_proj.weight[:, :32], torch.zeros(32, 32))
    assert torch.equal(own.self_attn.o_proj.weight, last.self_attn.o_proj.weight)
    assert torch.equal(own.mlp.down_proj.weight, last.mlp.down_proj.weight)
    assert torch.equal(own.hidden_norm.weight, last.input_layernorm.weight)
    assert head.draft_ids.tolist() == IDS


def test_an_untrained_layer_does_what_the_targets_last_one_did():
    """Its feature is the highest state that it reads, so a head that reads the last layer's input gives its output."""
    target = make_model(layers=7)
    head = head_from_target(target, IDS)
    head.config.aux_layers = (2, 3, 6)
    with torch.no_grad(), AuxStates(target, head.aux_layers) as aux:
        hidden = target.hidden_states(TEXT)
        logits = head.logits(head(TEXT.roll(-1, 1), head.fuse(aux.take())))
    torch.testing.assert_close(logits, target.logits(hidden)[..., IDS], rtol=1e-4, atol=1e-5)


def _hooks(target):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in target.base_model.modules())


@pytest.mark.parametrize("layers", [(2, 3, 4), (0, 1, 6)])
def test_caught_states_are_those_that_transformers_gives(layers):
    target = make_model(layers=7)
    whole = target.base_model(TEXT, output_hidden_states=True).hidden_states
    before = _hooks(target)
    with torch.no_grad(), AuxStates(target, layers) as aux:
        target.hidden_states(TEXT)
        caught = aux.take()
    assert torch.equal(caught, torch.cat([whole[number] for number in layers], -1))
    assert _hooks(target) == before


def test_the_state_after_the_last_layer_has_seen_no_final_norm():
    target = make_model(layers=3)
    with torch.no_grad(), AuxStates(target, (1, 2, 3)) as aux:
        hidden = target.hidden_states(TEXT)
        last = aux.take()[..., 64:]
    torch.testing.assert_close(target.base_model.norm(last), hidden)


@pytest.mark.parametrize(("layers", "read"), [(2, (0, 1, 2)), (6, (4, 5, 6)), (7, (2, 3, 4)), (30, (2, 15, 27))])
def test_layers_that_are_read(layers, read):
    assert default_aux_layers(layers) == read


def test_rows_read_one_by_one_give_what_one_pass_gives():
    target = make_model(layers=7)
    head, torch_generator = make_head(target).double(), torch.Generator().manual_seed(0)
    features = torch.randn(1, 9, 32, generator=torch_generator, dtype=torch.float64)
    with torch.no_grad():
        whole = head(TEXT[:, 1:], features)
        cache = DynamicCache()
        rows = [head(TEXT[:, row + 1 : row + 2], features[:, row : row + 1], past_key_values=cache) for row in range(9)]
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=1e-9, atol=1e-9)


def test_a_head_rotates_and_norms_as_its_target_does(tmp_path):
    target = make_model("qwen3", layers=7)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
    target.config.rope_parameters, target.config.rms_norm_eps = rope, 1e-3
    save_head(make_head(target), tmp_path, 7)
    stored = json.loads((tmp_path / "config.json").read_text())
    # Engines that don't read rope_parameters look for it at the top.
    assert stored["rope_theta"] == 1e6 and stored["rms_norm_eps"] == 1e-3
    again = load_head(tmp_path, 7)
    assert {name: again.config.rope_parameters[name] for name in rope} == rope
    assert again.norm.variance_epsilon == again.layer.hidden_norm.variance_epsilon == 1e-3


@pytest.mark.parametrize("own_embedding", [False, True])
def test_files_hold_the_tensors_that_engines_read(tmp_path, own_embedding):
    target = make_model(layers=7)
    head = make_head(target, own_embedding=own_embedding)
    save_head(head, tmp_path, 7)
    stored, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    layer = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layer += ["input_layernorm", "hidden_norm", "post_attention_layernorm"]
    names = {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d", *(f"midlayer.{name}.weight" for name in layer)}
    assert set(stored) == names | ({"embed_tokens.weight"} if own_embedding else set())
    assert stored["fc.weight"].shape == (32, 96) and stored["lm_head.weight"].shape == (6, 32)
    assert stored["midlayer.self_attn.k_proj.weight"].shape == (16, 64)
    assert stored["d2t"].tolist() == [1, 4, 7, 14, 29, 59] and stored["d2t"].dtype == torch.int64
    assert stored["t2d"].nonzero()[:, 0].tolist() == IDS and stored["t2d"].shape == (65,)
    assert config["architectures"] == ["LlamaForCausalLMEagle3"] and config["model_type"] == "llama"
    assert (config["draft_vocab_size"], config["vocab_size"], config["num_hidden_layers"]) == (6, 65, 1)
    assert "eagle_aux_hidden_state_layer_ids" not in config and "eagle_config" not in config
    again = load_head(tmp_path, 7)
    again.use_embedding(target.model.get_input_embeddings().weight)
    features = torch.randn(1, 10, 32)
    with torch.no_grad():
        assert torch.equal(again.logits(again(TEXT, features)), head.logits(head(TEXT, features)))
    assert again.draft_ids.tolist() == IDS and again.aux_layers == (2, 3, 4)
    assert again.own_embedding == own_embedding


def test_a_head_of_the_whole_vocabulary_has_no_map(tmp_path):
    target = make_model(layers=7)
    save_head(make_head(target, range(65)), tmp_path, 7)
    assert not {"d2t", "t2d"} & set(load_file(tmp_path / "model.safetensors"))
    assert load_head(tmp_path, 7).draft_ids.tolist() == list(range(65))


def test_layers_of_a_small_target_are_named_in_the_file(tmp_path):
    save_head(make_head(make_model(layers=3)), tmp_path, 3)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["eagle_aux_hidden_state_layer_ids"] == [1, 2, 3]
    assert load_head(tmp_path, 3).aux_layers == (1, 2, 3)
    with pytest.raises(IncompatibleModelsError, match=r"made for a target of 3 layers, layers 1, 2, 3 of 3 .*has 30"):
        load_head(tmp_path, 30)


def test_a_file_of_others_names_its_layer_by_number(tmp_path):
    head = make_head(make_model(layers=7))
    save_head(head, tmp_path, 7)
    path = tmp_path / "model.safetensors"
    stored = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in load_file(path).items()}
    save_file(stored, path)
    assert torch.equal(load_head(tmp_path, 7).layer.mlp.up_proj.weight, head.layer.mlp.up_proj.weight)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("architectures", ["LlamaForCausalLM"], "is no EAGLE-3 head"),
        ("norm_before_residual", True, "norm_before_residual"),
        ("num_hidden_layers", 2, "another number of layers"),
    ],
)
def test_other_variants_are_refused(tmp_path, key, value, message):
    save_head(make_head(make_model(layers=7)), tmp_path, 7)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ModelError, match=message):
        load_head(tmp_path, 7)


def test_targets_of_other_families_are_refused():
    with pytest.raises(ModelError, match=r"of type 'gpt2'.*cuts an independent draft"):
        head_from_target(make_model("gpt2", layers=7), IDS)


def test_unrolled_rounds_are_those_of_a_decoder():
    """Each round by itself: the text row by row with a cache, then its later tokens with the head's own features."""
    target = make_model(layers=7)
    head = make_head(target)
    texts, firsts, counts, steps = [[5, 9, 17, 33, 40, 41, 9, 17, 33, 8], [7, 8, 9, 10, 11, 12]], [3, 0], [5, 4], 4
    ids = torch.tensor([texts[0], texts[1] + [0] * 4])
    with torch.no_grad(), AuxStates(target, head.aux_layers) as caught:
        target.hidden_states(ids)
        aux = caught.take()
        anchors = Anchors(torch.tensor(firsts), torch.tensor(counts))
        unrolled = unrolled_states(head, ids, aux, anchors, steps)
        for row, text in enumerate(texts):
            features = head.fuse(aux[row : row + 1])
            for number in range(counts[row]):
                anchor, cache = firsts[row] + number, DynamicCache()
                for place in range(anchor + 1):
                    token = torch.tensor([[text[place + 1]]])
                    state = head(token, features[:, place : place + 1], past_key_values=cache)
                for step in range(steps):
                    torch.testing.assert_close(unrolled[step][row, number], state[0, 0], rtol=1e-5, atol=1e-5)
                    if anchor + 2 + step == len(text):
                        break
                    state = head(torch.tensor([[text[anchor + 2 + step]]]), state, past_key_values=cache)
