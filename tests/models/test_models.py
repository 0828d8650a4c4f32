"""Finding and loading models, aligning vocabularies, cutting drafts."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from tiny_models import FAMILIES, make_model, make_tokenizer, save
from transformers import BartConfig, T5Config

from specdistill.errors import ConfigError, IncompatibleModelsError, ModelError
from specdistill.models import check_same_vocabulary, cut_draft, load, load_model, load_pair, vocabulary
from specdistill.models.cut import only_layers


@pytest.mark.parametrize("family", FAMILIES)
def test_cut_takes_the_named_layers_and_nothing_else(family):
    target = make_model(family, layers=5)
    before = {name: tensor.clone() for name, tensor in target.model.state_dict().items()}
    ids = torch.tensor([[5, 9, 13, 20, 31]])
    draft = cut_draft(target, [0, 2, 4])
    with torch.no_grad():
        with only_layers(target, [0, 2, 4]):
            wanted = target.logits(target.hidden_states(ids))
        assert torch.equal(draft.logits(draft.hidden_states(ids)), wanted)
        assert not torch.equal(target.logits(target.hidden_states(ids)), wanted)
    assert draft.config.num_hidden_layers == 3 and target.config.num_hidden_layers == 5
    with torch.no_grad():
        for parameter in draft.model.parameters():
            parameter.zero_()
    for name, tensor in target.model.state_dict().items():
        assert torch.equal(tensor, before[name]), "the draft must have weights of its own"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_cut_survives_saving(tmp_path, family, tied):
    target = make_model(family, layers=4, tied=tied)
    draft = cut_draft(target, [1, 3])
    draft.model.save_pretrained(tmp_path)
    target.tokenizer.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), "draft")
    ids = torch.tensor([[5, 9, 13]])
    with torch.no_grad():
        assert torch.equal(draft.logits(draft.hidden_states(ids)), again.logits(again.hidden_states(ids)))


@pytest.mark.parametrize("layers", [[], [0, 1, 2], [1, 0], [0, 0], [0, 3], [-1, 0]])
def test_cut_refuses(layers):
    with pytest.raises(ConfigError):
        cut_draft(make_model(layers=3), layers)


def test_what_is_no_causal_language_model_is_refused(tmp_path):
    """No type is refused by its name: T5 has no causal model, and BART reads its prompt with an encoder."""
    for name, config, why in (
        ("t5", T5Config(), "'t5', of which transformers has no causal language model"),
        ("bart", BartConfig(), "'bart', which reads prompts with an encoder"),
    ):
        config.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match=why):
            load_model(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./nowhere", "does not exist"),
        ("/nowhere/model.gguf", "does not exist"),
        ("missing.gguf", "does not exist"),
        ("no-such-org/no-such-model", "needs network access or a local cache"),
    ],
)
def test_missing_models_are_refused_with_the_remedy(name, text):
    with pytest.raises(ModelError, match=text):
        load_model(name)


@pytest.mark.parametrize(
    ("cause", "asked"), [(LocalEntryNotFoundError("offline"), False), (EntryNotFoundError("no such file"), True)]
)
def test_a_hub_that_is_out_of_reach_is_asked_once_and_quietly(monkeypatch, caplog, cause, asked):
    """The library tries for some 20 seconds each time, and writes two lines for each try."""
    calls = []

    def warn():
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 1s")

    def no_config(*given, **named):
        warn()
        raise OSError("We couldn't connect") from cause

    def no_adapter(*given, **named):
        warn()
        calls.append(named["local_files_only"])

    monkeypatch.setattr("specdistill.models.load.AutoConfig.from_pretrained", no_config)
    monkeypatch.setattr("specdistill.models.hub_files.cached_file", no_adapter)
    with pytest.raises(ModelError, match="--draft nodir: there is no directory of that name here, and as a hub id"):
        load.find("nodir", "draft")
    assert not caplog.records
    warn()
    assert len(caplog.records) == 1, "else the test would see no line at all"
    assert calls == [not asked]
    with pytest.raises(ModelError, match="--draft owner/name: We couldn't connect"):
        load.find("owner/name", "draft")


def test_directories_and_files_that_are_no_models(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(str(tmp_path))
    file = tmp_path / "weights.bin"
    file.write_bytes(b"x")
    with pytest.raises(ModelError, match=r"no \.gguf"):
        load_model(str(file))
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a gguf file")
    with pytest.raises(ModelError, match="not a GGUF file"):
        load_model(str(fake))


def test_pair_of_different_tokenizers_names_both_and_the_first_differing_token(tmp_path):
    target = save(make_model(), tmp_path / "target")
    other = make_tokenizer(first_word="zebra")
    draft = save(make_model(tokenizer=other), tmp_path / "draft")
    with pytest.raises(IncompatibleModelsError, match=r"id 5 is 'w0' in .*target .* and 'zebra' in .*draft"):
        load_pair(str(target), str(draft))
    shorter = make_tokenizer(words=50)
    with pytest.raises(IncompatibleModelsError, match=r"id 55 is 'w50' in a .* and 'unused' in b"):
        check_same_vocabulary(make_tokenizer(), shorter, "a", "b")


def test_a_draft_larger_than_its_target_is_warned_of(tmp_path):
    large, small = save(make_model(layers=3), tmp_path / "large"), save(make_model(layers=1), tmp_path / "small")
    # A row more, as for a mask token, is no larger model.
    padded = save(make_model(layers=3, vocab_size=66), tmp_path / "padded")
    said = []
    for target, draft in ((large, small), (large, large), (large, padded)):
        load_pair(str(target), str(draft), say=said.append)
    assert said == []
    load_pair(str(small), str(large), say=said.append)
    (line,) = said
    assert line.startswith(f"warning: --draft {large} has ") and f" more than --target {small} with " in line
    assert line.endswith("are they swapped?")


def test_vocabularies_padded_differently_are_one_family(tmp_path):
    target = save(make_model(vocab_size=80), tmp_path / "target")
    draft = save(make_model(vocab_size=72, layers=1), tmp_path / "draft")
    pair = load_pair(str(target), str(draft))
    assert pair.target.vocab_size == pair.draft.vocab_size == 65
    hidden = torch.randn(2, 32)
    assert pair.target.logits(hidden).shape == pair.draft.logits(hidden).shape == (2, 65)


def test_a_head_smaller_than_the_tokenizer_is_refused(tmp_path):
    with pytest.raises(ModelError, match="belong to another model"):
        load_model(str(save(make_model(vocab_size=40), tmp_path)))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("have", "want"), [(65, 80), (72, 80), (80, 72), (80, 65)])
def test_resize_changes_padding_only(have, want, tied):
    model = make_model(vocab_size=have, tied=tied)
    ids = torch.randint(5, 65, (4, 20))
    with torch.no_grad():
        before = model.logits(model.hidden_states(ids))
        vocabulary.resize_to(model.model, want, 65)
        logits = model.model(ids).logits
    assert logits.shape[-1] == want == model.config.vocab_size
    torch.testing.assert_close(logits[..., :65], before)
    with pytest.raises(IncompatibleModelsError, match="head has 64 rows"):
        vocabulary.resize_to(model.model, 64, 65)


@pytest.mark.smollm2
def test_padding_gets_next_to_no_probability_on_real_text(smollm2):
    draft = cut_draft(smollm2, list(range(29)))
    text = "The lighthouse keeper wrote a letter to the ship. def add(a, b): return a + b. What is 15 percent of 240?"
    ids = torch.tensor([smollm2.tokenizer(text)["input_ids"]])
    vocabulary.resize_to(draft.model, 49280, 49152)
    with torch.no_grad():
        logits = draft.model(ids).logits
    assert logits.shape[-1] == 49280 and (logits.argmax(-1) < 49152).all()
    assert logits.softmax(-1)[..., 49152:].sum(-1).max() < 1e-6


def test_kept_ids_round_trip_and_damage_is_reported(tmp_path):
    vocabulary.save_kept_ids(tmp_path, torch.tensor([3, 7, 9]), "test")
    assert vocabulary.load_kept_ids(tmp_path, 65).tolist() == [3, 7, 9]
    assert vocabulary.load_kept_ids(tmp_path / "elsewhere", 65) is None
    with pytest.raises(ModelError, match=r"outside 0\.\.8"):
        vocabulary.load_kept_ids(tmp_path, 9)
    (tmp_path / vocabulary.KEPT_IDS_FILE).write_text(json.dumps({"ids": []}))
    with pytest.raises(ModelError, match="is damaged"):
        vocabulary.load_kept_ids(tmp_path, 65)


def test_trimmed_logits_are_the_kept_columns_and_follow_the_weights():
    model = make_model()
    model.kept_ids = torch.tensor([1, 8, 30, 64])
    hidden = torch.randn(3, 32)
    full = hidden @ model.head_weight[:65].T
    with torch.inference_mode():
        own = model.own_logits(hidden)
        spread = model.logits(hidden)
    torch.testing.assert_close(own, full[:, model.kept_ids])
    torch.testing.assert_close(spread[:, model.kept_ids], own)
    assert torch.isinf(spread).sum() == 3 * 61
    assert model.to_token_ids(torch.tensor([0, 3])).tolist() == [1, 64]
    with torch.no_grad():
        model.head_weight.mul_(2)
    model.weights_changed()
    with torch.inference_mode():
        torch.testing.assert_close(model.own_logits(hidden), 2 * own)


def test_stop_ids_come_from_every_place_that_knows_one():
    model = make_model()
    model.model.generation_config.eos_token_id = [7, 9]
    model.config.eos_token_id = 11
    assert model.eos_token_ids == {7, 9, 11, 1}


@pytest.mark.smollm2
def test_gguf_is_converted_once_and_reused(gguf_path, smollm2, monkeypatch):
    from specdistill.models import gguf

    assert smollm2.num_parameters == 134_515_008 and smollm2.vocab_size == 49152
    assert smollm2.tokenizer.chat_template
    directory = smollm2.directory
    assert directory == gguf.converted_directory(gguf_path) and not list(directory.parent.glob(".*"))
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("converted again")
    )
    assert gguf.convert(gguf_path) == directory
