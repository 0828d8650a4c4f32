"""`init-draft --donor`: a small model of another family becomes a draft of the target's tokenizer."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import wild_checkpoints as wild
from safetensors.torch import load_file
from tiny_models import make_model, save
from tiny_runs import Said, any_config, cut_config, train, write_folder
from tiny_tokenizers import byte_level, sentencepiece
from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

from specdistill import InitDraftConfig, init_draft
from specdistill.cli import main
from specdistill.data import Example
from specdistill.distill.cutting import init_draft as command_module
from specdistill.distill.training.step import learning_rate
from specdistill.errors import ConfigError, ModelError
from specdistill.models import load_model, load_pair
from specdistill.models.checkpoint import is_fresh_cut

TARGET_WORDS = ["w1", " w1", " w2", " w1w2"]
DONOR_WORDS = [" w2", " w1", "w1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte-level target with 3 padded rows, and a tied SentencePiece donor of another family."""
    wanted, own = byte_level(TARGET_WORDS), sentencepiece(DONOR_WORDS)
    models = {
        "target": make_model(layers=3, tokenizer=wanted, vocab_size=len(wanted) + 3),
        "donor": make_model("gemma3_text", layers=4, seed=9, tokenizer=own, vocab_size=len(own), tied=True),
        "relative": make_model(layers=2, seed=5, tokenizer=wanted, vocab_size=len(wanted)),
    }
    return write_folder(tmp_path_factory.mktemp("donor"), models)


def donor_config(folder, output, **settings) -> InitDraftConfig:
    """Four answers of 8 tokens, so that untrained alpha is measured on all of them."""
    few = {"donor": str(folder / "donor"), "layers": None, "calibration_prompts": 4}
    return cut_config(folder, output, **(few | settings))


def row(directory, tokenizer, token: str) -> torch.Tensor:
    """Row of a saved, tied embedding."""
    weights = load_file(directory / "model.safetensors")
    assert "lm_head.weight" not in weights
    return weights["model.embed_tokens.weight"][tokenizer.convert_tokens_to_ids(token)]


def test_the_draft_has_the_targets_tokenizer_and_the_donors_layers(folder, tmp_path):
    summary = init_draft(donor_config(folder, tmp_path / "out"))
    target, donor = load_model(str(folder / "target")), load_model(str(folder / "donor"), "donor")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "target" / name).read_bytes()
    pair = load_pair(str(folder / "target"), str(tmp_path / "out"))
    draft = pair.draft
    assert pair.same_tokenizer and draft.config.model_type == "gemma3_text" and summary.layers == [0, 1, 2, 3]
    assert draft.head_weight.shape[0] == draft.config.vocab_size == target.head_weight.shape[0] == target.vocab_size + 3
    assert draft.eos_token_ids == target.eos_token_ids
    stop = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert set(stop) == target.eos_token_ids
    for name, weight in donor.model.state_dict().items():
        if ".layers." in name or "norm" in name:
            assert torch.equal(draft.model.state_dict()[name], weight), name
    one, two = (row(folder / "donor", donor.tokenizer, token) for token in ("▁w1", "▁w2"))
    assert torch.equal(row(tmp_path / "out", target.tokenizer, "Ġw1"), one)
    assert torch.equal(row(tmp_path / "out", target.tokenizer, "Ġw2"), two)
    # " w1w2" is two tokens of the donor: " w1", and "w" and "2" as bytes or letters.
    pieces = [row(folder / "donor", donor.tokenizer, token) for token in ("▁w1", "w", "2")]
    torch.testing.assert_close(row(tmp_path / "out", target.tokenizer, "Ġw1w2"), torch.stack(pieces).mean(0))
    assert summary.donor is not None and summary.donor.tied and not summary.donor.same_tokenizer
    assert summary.parameters == draft.num_parameters and summary.donor.parameters == donor.num_parameters


def test_coverage_is_that_of_the_targets_own_answers(folder, tmp_path, monkeypatch):
    target = load_model(str(folder / "target"))
    tokens = ["Ġw1", "Ġw1", "Ġw1w2", "<|endoftext|>", "Ġw2", "<|im_end|>", "Ġw1w2", "w1"]
    ids = tuple(target.tokenizer.convert_tokens_to_ids(tokens))
    answers = [Example(f"p{index}", (5, 6), ids[index * 4 : index * 4 + 4], (3,) * 4) for index in range(2)]
    monkeypatch.setattr(command_module, "write_answers", lambda *arguments: answers)
    summary = init_draft(donor_config(folder, tmp_path / "out"))
    assert summary.donor is not None
    text, vocabulary = summary.donor.text, summary.donor.vocabulary
    assert (text.whole, text.averaged, text.mean_of_all) == (6 / 8, 2 / 8, 0)
    # Beginnings of " w1w2" that are no token of the donor are averaged too: " w1w".
    averaged = 2 / target.vocab_size
    assert vocabulary.averaged == pytest.approx(averaged) and vocabulary.whole == pytest.approx(1 - averaged)
    recorded = json.loads((tmp_path / "out" / "init_draft.json").read_text())
    assert recorded["donor"]["text"] == {"whole": 0.75, "averaged": 0.25, "mean_of_all": 0.0}
    assert recorded == json.loads(json.dumps(summary.to_json()))


@pytest.mark.parametrize("layers", [None, 2])
def test_alpha_is_that_of_the_draft_against_the_target(folder, tmp_path, monkeypatch, layers):
    written = []

    def remember(*arguments):
        written.extend(original(*arguments))
        return written

    original = command_module.write_answers
    monkeypatch.setattr(command_module, "write_answers", remember)
    summary = init_draft(donor_config(folder, tmp_path / "out", layers=layers, probe_steps=0 if layers else 20))
    best = max(summary.candidates.values(), key=lambda candidate: candidate.alpha)
    pair = load_pair(str(folder / "target"), str(tmp_path / "out"))
    shared = []
    for answer in written:
        ids = torch.tensor([[*answer.prompt_ids, *answer.answer_ids]])
        start = len(answer.prompt_ids) - 1
        with torch.no_grad():
            target, draft = (
                model.model(ids).logits[0, start:-1, : pair.target.vocab_size].softmax(-1)
                for model in (pair.target, pair.draft)
            )
        shared.append(torch.minimum(target, draft).sum(-1))
    assert best.alpha == pytest.approx(float(torch.cat(shared).mean()), abs=1e-5)


def test_layers_are_chosen_among_the_donors(folder, tmp_path):
    summary = init_draft(donor_config(folder, tmp_path / "out", layers=2, choose="ends", vocab_keep=30))
    assert list(summary.layers) == [0, 3] and set(summary.candidates) == {"ends"}
    donor, draft = load_model(str(folder / "donor"), "donor"), load_model(str(tmp_path / "out"), "draft")
    for place, layer in enumerate((0, 3)):
        kept = {name: value for name, value in draft.model.state_dict().items() if f".layers.{place}." in name}
        assert kept
        for name, weight in kept.items():
            assert torch.equal(weight, donor.model.state_dict()[name.replace(f".{place}.", f".{layer}.")])
    assert draft.config.layer_types == [donor.config.layer_types[0], donor.config.layer_types[3]]
    assert draft.kept_ids is not None and len(draft.kept_ids) == 30 == summary.head_size
    assert {1, 2} <= set(draft.kept_ids.tolist())


def test_it_is_trained_as_a_fresh_cut(folder, tmp_path):
    init_draft(donor_config(folder, tmp_path / "cut"))
    draft = load_model(str(tmp_path / "cut"), "draft")
    assert is_fresh_cut(draft) and learning_rate(any_config().optimiser, draft) == 1.5e-3
    summary = train(folder, tmp_path / "out", draft=str(tmp_path / "cut"), method="distillspec")
    assert summary.steps == 8
    trained = load_pair(str(folder / "target"), str(tmp_path / "out")).draft
    assert trained.config.model_type == "gemma3_text" and not is_fresh_cut(trained)


def test_a_donor_of_the_same_tokenizer_needs_no_transplant(folder, tmp_path):
    relative = str(folder / "relative")
    for layers in (None, 2):
        with pytest.raises(ConfigError, match=r"no transplant is needed: 'specdistill train-draft --draft .*relative'"):
            init_draft(donor_config(folder, tmp_path / "out", donor=relative, layers=layers))
    summary = init_draft(donor_config(folder, tmp_path / "out", donor=relative, layers=1, choose="even"))
    assert summary.donor is not None and summary.donor.same_tokenizer and summary.donor.text.whole == 1
    donor, draft = load_model(relative, "donor"), load_model(str(tmp_path / "out"), "draft")
    assert torch.equal(draft.head_weight[: donor.vocab_size], donor.head_weight)


@pytest.mark.parametrize("of", ["donor", "target"])
def test_what_is_made_of_a_parallel_draft_is_an_ordinary_one(folder, tmp_path, of):
    """Its `pard_token` went along: an id that was a word, or none, in the target's vocabulary."""
    shutil.copytree(folder / of, tmp_path / of)
    rows = json.loads((tmp_path / of / "config.json").read_text())["vocab_size"]
    wild.change_json(tmp_path / of / "config.json", pard_token=rows - 1, parallel_draft_tokens=4)
    if of == "donor":
        config = donor_config(folder, tmp_path / "out", donor=str(tmp_path / of))
    else:
        config = cut_config(folder, tmp_path / "out", target=str(tmp_path / of), layers=1, choose="even")
    said = Said()
    init_draft(config, said)
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"pard_token", "parallel_draft_tokens"} & set(written)
    assert sum("what is made of it is an ordinary draft" in line for line in said.lines) == 1
    assert load_model(str(tmp_path / "out"), "draft").parallel is None


def test_nothing_is_left_where_writing_fails(folder, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise ModelError("disk on fire")

    monkeypatch.setattr(command_module.atomic, "write_text", fail)
    with pytest.raises(ModelError, match="disk on fire"):
        init_draft(donor_config(folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


# ---- bad input


def encoder(directory):
    """BERT, which AutoModelForCausalLM would load with a mask that looks ahead."""
    BertLMHeadModel(
        BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(directory)
    sentencepiece(DONOR_WORDS).save_pretrained(directory)


def encoder_and_decoder(directory):
    T5ForConditionalGeneration(T5Config(vocab_size=300, d_model=16, num_layers=1, num_heads=2)).save_pretrained(
        directory
    )
    sentencepiece(DONOR_WORDS).save_pretrained(directory)


def without_head(directory):
    tokenizer = sentencepiece(DONOR_WORDS)
    model = make_model(tokenizer=tokenizer, vocab_size=len(tokenizer))
    save(model, directory)
    wild.change_weights(directory, lambda weights: weights.pop("lm_head.weight"))


def quantised(directory):
    tokenizer = sentencepiece(DONOR_WORDS)
    save(make_model(tokenizer=tokenizer, vocab_size=len(tokenizer)), directory)
    wild.change_json(
        directory / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}
    )


REFUSED = {
    "encoder": (encoder, "its head times the hidden states differs"),
    "encoder and decoder": (encoder_and_decoder, "is of type 't5', of which transformers has no causal language model"),
    "no head": (without_head, "holds no weights for lm_head.weight"),
    "quantised": (quantised, "--donor bad is quantised by bitsandbytes, and quantised weights can't be cut"),
    "adapter": (wild.adapter, "can't read the base org/base-8b of --donor bad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_be_a_donor_is_refused_in_one_line(folder, tmp_path, monkeypatch, capsys, name):
    make, text = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "bad")
    words = ["--target", str(folder / "target"), "--prompts", str(folder / "prompts.jsonl"), "--output", "out"]
    capsys.readouterr()
    assert main(["init-draft", *words, "--donor", "bad"]) == 2
    assert text in wild.one_line(capsys) and not wild.written(tmp_path)


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--layers is required without --donor"),
        (["--donor", "donor", "--layers", "5"], "--layers 5 exceeds the donor's 4 layers"),
        (["--donor", "donor", "--layers", "0"], "--layers must be at least 1, got 0"),
        (["--donor", "donor", "--choose", "ends"], "--choose ends has no effect here: it goes with --layers"),
        (["--donor", "donor", "--probe-steps", "3"], "--probe-steps 3 has no effect here: it goes with --layers"),
        (["--donor", "./nowhere"], "--donor ./nowhere does not exist"),
        (["--donor", ""], "--donor is empty"),
        (["--donor", "target", "--layers", "3"], "has the target's own tokenizer, so no transplant is needed"),
    ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(folder, tmp_path, monkeypatch, capsys, flags, text):
    monkeypatch.chdir(folder)
    words = ["--target", "target", "--prompts", "prompts.jsonl", "--output", str(tmp_path / "out")]
    assert main(["init-draft", *words, *flags]) == 2
    assert text in wild.one_line(capsys) and not wild.written(tmp_path)
