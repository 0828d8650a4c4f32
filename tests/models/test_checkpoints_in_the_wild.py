"""Checkpoints as people have them: ids beyond the head, and weights that are not the architecture's own."""

from __future__ import annotations

import sys

import pytest
import torch
import wild_checkpoints as wild
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import write_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from specdistill.cli import main
from specdistill.errors import DataError, IncompatibleModelsError, ModelError
from specdistill.models import gguf, load_model, load_pair
from specdistill.models.load import find, load_shell


@pytest.fixture
def pair(tmp_path):
    """A target of three layers and a draft of one, which a test may damage."""
    save(make_model(layers=3), tmp_path / "target")
    save(make_model(layers=1, seed=9), tmp_path / "draft")
    return tmp_path


# ---- ids beyond the head


@pytest.mark.parametrize("command", wild.COMMANDS)
def test_an_added_token_without_a_row_is_no_reason_to_refuse_a_model(pair, command, capsys):
    for role in ("target", "draft"):
        assert wild.add_token(pair / role) == 65
    assert wild.run(command, pair) == 0, capsys.readouterr().err


def test_ids_beyond_the_head_can_not_be_produced(pair):
    for role in ("target", "draft"):
        wild.add_token(pair / role)
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert loaded.target.vocab_size == loaded.draft.vocab_size == 65
    assert loaded.target.logits(torch.randn(2, 32)).shape == (2, 65)
    assert load_shell(find(str(pair / "target"), "target")).vocab_size == 65


def test_only_one_side_has_the_added_token(pair):
    wild.add_token(pair / "target")
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert loaded.same_tokenizer and loaded.target.vocab_size == 65


def test_a_prompt_with_a_token_without_weights_is_named(pair, capsys):
    wild.add_token(pair / "target")
    write_rows(pair / "prompts.jsonl", [{"id": "fine", "prompt": "w1"}, {"id": "photo", "prompt": "w1 <image> w2"}])
    assert wild.run("generate", pair) == 2
    error = wild.one_line(capsys)
    assert "'photo'" in error and "'<image>' (id 65)" in error and "ids 0 to 64" in error and not wild.written(pair)


def test_an_answer_with_a_token_without_weights_is_named(pair, capsys):
    for role in ("target", "draft"):
        wild.add_token(pair / role)
    rows = [{"id": f"p{i}", "prompt": f"w{i}", "answer": "w3 <image>"} for i in range(6)]
    write_rows(pair / "prompts.jsonl", rows)
    assert wild.run("train-draft", pair) == 2
    # The held-out prompts, which are fine, were answered before.
    assert "'<image>' (id 65)" in capsys.readouterr().err.splitlines()[-1]


def test_text_labels_and_guidance_with_a_token_without_weights_are_named(pair, capsys):
    """An index error of the embedding in the middle of the run, or "made with another tokenizer?"."""
    for role in ("target", "draft"):
        wild.add_token(pair / role)
    rows = [{"id": f"p{i}", "prompt": f"w{i}", "answer": "w3 <image>"} for i in range(6)]
    write_rows(pair / "prompts.jsonl", rows)
    assert wild.run("annotate", pair) == 2
    assert "the answer to 'p0' holds the token '<image>' (id 65)" in wild.one_line(capsys)
    (pair / "text.txt").write_text("w1 w2\n\nw3 <image> w4\n")
    target, short = ["--target", str(pair / "target")], ["--steps", "1", "--max-new-tokens", "4"]
    assert main(["annotate", *target, "--text", str(pair / "text.txt"), "--output", str(pair / "labels")]) == 2
    assert "--text holds the token '<image>' (id 65)" in wild.one_line(capsys)
    train = ["train-draft", *target, "--draft", str(pair / "draft"), "--prompts", str(pair / "prompts.jsonl"), *short]
    train += ["--rollouts-per-prompt", "1", "--heldout-prompts", "2"]
    text = ["--method", "sft", "--text", str(pair / "text.txt"), "--output", str(pair / "out")]
    assert main([*train, *text]) == 2
    assert "--text holds the token '<image>' (id 65)" in capsys.readouterr().err.splitlines()[-1]
    guided = ["--guidance", "0.5", "--negative-prompt", "<image>", "--output", str(pair / "guided")]
    assert main([*train, *guided]) == 2
    assert "--negative-prompt holds the token '<image>' (id 65)" in wild.one_line(capsys)


def test_a_draft_whose_head_is_shorter_than_the_targets_ids_keeps_its_distribution(pair):
    """Gemma 3: the 4B has rows for the image token, the 270M has none, and the tokenizers are equal."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    save(make_model(layers=3, vocab_size=72, tokenizer=tokenizer), pair / "wide")
    wild.add_token(pair / "draft")
    alone = load_model(str(pair / "draft"), "draft")
    loaded = load_pair(str(pair / "wide"), str(pair / "draft"))
    assert loaded.target.vocab_size == loaded.draft.vocab_size == 66
    ids = torch.randint(5, 65, (2, 9))
    with torch.no_grad():
        before = alone.logits(alone.hidden_states(ids)).softmax(-1)
        after = loaded.draft.logits(loaded.draft.hidden_states(ids)).softmax(-1)
    torch.testing.assert_close(after[..., :65] / after[..., :65].sum(-1, keepdim=True), before)
    assert after[..., 65].mean() < 1 / 66


def test_a_real_token_beyond_the_head_still_means_other_files(pair):
    make_tokenizer(words=80).save_pretrained(pair / "target")
    with pytest.raises(ModelError, match=r"id 65 .* belong to another model"):
        find(str(pair / "target"), "target")


def test_an_added_token_with_a_row_is_still_a_difference(pair):
    save(make_model(layers=3, vocab_size=72), pair / "wide")
    wild.add_token(pair / "wide", "<think>")
    with pytest.raises(IncompatibleModelsError, match="id 65 is '<think>'"):
        load_pair(str(pair / "wide"), str(pair / "draft"))


# ---- weights that are not the architecture's own


def without_head(weights):
    del weights["lm_head.weight"]


def with_scales(weights):
    weights["model.layers.0.self_attn.q_proj.weight_scale"] = torch.ones(1)


def of_another_shape(weights):
    weights["model.norm.weight"] = torch.ones(16)


def with_nan(weights):
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan


DAMAGES = {
    without_head: "holds no weights for lm_head.weight",
    with_scales: "no place for: model.layers.0.self_attn.q_proj.weight_scale",
    of_another_shape: "model.norm.weight has the shape [16], but config.json asks for [32]",
    with_nan: "model.layers.1.mlp.up_proj.weight holds NaN or infinity",
}


@pytest.mark.parametrize("command", wild.COMMANDS[:-1])
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_weights_that_are_not_the_models_own_are_refused_by_name(pair, command, damage, capsys):
    wild.change_weights(pair / "target", damage)
    assert wild.run(command, pair) == 2
    if command == "annotate":
        # It says what the labels will take, and records its settings, before workers read the weights.
        assert DAMAGES[damage] in capsys.readouterr().err.splitlines()[-1]
        return
    assert DAMAGES[damage] in wild.one_line(capsys) and not wild.written(pair)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("compare", ["bench", "--draft", "draft", "--num-draft-tokens", "2"]),
        ("other", ["generate", "--output", "out"]),
        ("reference", ["train-draft", "--draft", "draft", "--output", "out"]),
    ],
)
def test_every_model_of_a_command_is_checked_under_its_own_flag(pair, monkeypatch, capsys, flag, words):
    wild.copy(pair / "draft", pair / "damaged")
    wild.change_weights(pair / "damaged", without_head)
    write_rows(pair / "prompts.jsonl", [{"prompt": f"w{i}"} for i in range(6)])
    monkeypatch.chdir(pair)
    rest = ["--prompts", "prompts.jsonl", "--max-new-tokens", "4", f"--{flag}", "damaged"]
    assert main([*words, "--target", "target", *rest]) == 2
    # A compared draft is loaded when the others are scored already: it is left out, and the exit code says so.
    said = capsys.readouterr().err if flag == "compare" else wild.one_line(capsys)
    assert f"--{flag} damaged holds no weights for lm_head.weight" in said


def test_a_converted_gguf_is_checked_like_a_checkpoint(tmp_path, monkeypatch):
    """A tensor that the file lacks was random, and the conversion stayed in the cache."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda **_: make_tokenizer())
    report = {"missing_keys": ["lm_head.weight"], "mismatched_keys": [], "unexpected_keys": []}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda **_: (make_model(layers=1).model, report))
    with pytest.raises(ModelError, match=r"m\.gguf holds no weights for lm_head\.weight"):
        gguf.convert(tmp_path / "m.gguf", print)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_weights_that_change_nothing_are_no_reason_to_refuse(pair):
    def change(weights):
        weights["mtp.layers.0.weight"] = torch.ones(2)
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    before = load_model(str(pair / "target"))
    wild.change_weights(pair / "target", change)
    after = load_model(str(pair / "target"))
    assert all(map(torch.equal, before.model.state_dict().values(), after.model.state_dict().values()))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_tied_head_is_not_missing(tmp_path, family):
    directory = save(make_model(family, tied=True), tmp_path / "tied")
    assert load_model(str(directory)).head_weight is not None


def test_large_finite_weights_are_no_infinity(pair):
    def change(weights):
        weights["model.layers.0.mlp.up_proj.weight"].fill_(3e37)

    wild.change_weights(pair / "target", change)
    load_model(str(pair / "target"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("pytorch_model.bin",), "pickles (pytorch_model.bin)"),
        ((), "holds no weights (*.safetensors)"),
        (("training_args.bin", "optimizer.pt"), "holds no weights (*.safetensors)"),
    ],
)
def test_checkpoints_without_safetensors(pair, names, message, capsys):
    (pair / "target" / wild.WEIGHTS).unlink()
    for name in names:
        (pair / "target" / name).write_bytes(b"")
    assert wild.run("generate", pair) == 2 and message in wild.one_line(capsys) and not wild.written(pair)


def test_a_missing_shard_is_named(pair, capsys):
    model = make_model(layers=3)
    (pair / "target" / wild.WEIGHTS).unlink()
    model.model.save_pretrained(pair / "target", max_shard_size="20KB")
    load_model(str(pair / "target"))
    shard = sorted((pair / "target").glob("model-0000*.safetensors"))[-1]
    shard.unlink()
    assert wild.run("generate", pair) == 2 and f"names {shard.name}, which is missing" in wild.one_line(capsys)


def test_a_cut_off_weight_file_is_one_line(pair, capsys):
    file = pair / "target" / wild.WEIGHTS
    file.write_bytes(file.read_bytes()[:2000])
    assert wild.run("generate", pair) == 2 and "can't load the weights of --target" in wild.one_line(capsys)


def test_ids_of_another_model_are_refused_in_text(pair):
    from specdistill.data.prompts import check_ids

    with pytest.raises(DataError, match=r"'w59' \(id 64\)"):
        check_ids([1, 64], make_tokenizer(), 64, "the text")
    check_ids([1, 63], make_tokenizer(), 64, "the text")


def test_a_conversion_says_one_line_and_draws_no_bars(tmp_path, monkeypatch, capfd):
    """transformers drew three bars behind it, which fill a log."""
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda **_: make_tokenizer())
    report = {"missing_keys": [], "mismatched_keys": [], "unexpected_keys": []}

    def loaded(**_):
        sys.stderr.write("Converting and de-quantizing GGUF tensors...:   0%|")
        return make_model(layers=1).model, report

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", loaded)
    said = []
    directory = gguf.convert(tmp_path / "m.gguf", said.append)
    assert (directory / "model.safetensors").exists()
    assert len(said) == 1 and said[0].startswith("converting m.gguf to a plain checkpoint, once")
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""
