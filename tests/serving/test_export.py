"""Exported files hold the draft that was given, in the form that an engine wants."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
import torch
from tiny_models import make_config, make_model, make_tokenizer, save
from transformers import AutoModelForCausalLM

from specdistill.cli import main
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import load_model
from specdistill.models.vocabulary import save_kept_ids

REAL = 65
"""Ids of the tiny tokenizer."""


@pytest.fixture
def pair(tmp_path):
    """A target whose head is padded to 80 rows, and a draft without padding, of shorter context and trimmed head."""
    save(make_model(layers=3, vocab_size=80), tmp_path / "target")
    draft = make_model(layers=1, seed=4, context=128)
    save(draft, tmp_path / "draft")
    save_kept_ids(tmp_path / "draft", torch.arange(40), "a test")
    return tmp_path


def export(folder, *more, draft="draft"):
    return main(["export", "--target", str(folder / "target"), "--draft", str(folder / draft), *map(str, more)])


def hidden_logits(model, ids):
    with torch.inference_mode():
        return model.hidden_states(ids) @ model.head_weight.T


@pytest.mark.parametrize("form", ["vllm", "sglang", "transformers"])
def test_a_directory_has_the_targets_vocabulary_tokenizer_and_length(pair, form, capsys):
    out = pair / "out"
    assert export(pair, "--format", form, "--output", out) == 0
    said = capsys.readouterr().out
    assert "vocab_size 65 -> 80" in said and "128 -> 256" in said and "trim to 40 ids" in said
    assert f"{form}: loads" in said
    config = json.loads((out / "config.json").read_text())
    assert config["vocab_size"] == 80 and config["max_position_embeddings"] == 256
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (pair / "target" / name).read_bytes()
    assert not (out / "draft_vocabulary.json").exists()
    before, after = load_model(str(pair / "draft"), "draft"), load_model(str(out), "draft")
    ids = torch.randint(0, REAL, (1, 20), generator=torch.Generator().manual_seed(0))
    wanted, got = hidden_logits(before, ids), hidden_logits(after, ids)
    torch.testing.assert_close(got[..., :REAL], wanted)


@pytest.mark.parametrize("form", ["vllm", "transformers"])
def test_the_model_card_goes_along(pair, form):
    (pair / "draft/README.md").write_text("---\ntags: [x]\n---\n\n# A draft\n")
    assert export(pair, "--format", form, "--output", pair / "out") == 0
    card = (pair / "out/README.md").read_text()
    assert card.startswith("---\ntags: [x]\n---\n\n# A draft\n\nThis is a copy of `")
    assert f"{pair / 'draft'}`" in card and f"export --format {form}`" in card
    (pair / "draft/README.md").unlink()
    assert export(pair, "--format", form, "--output", pair / "again") == 0
    assert not (pair / "again/README.md").exists()


def test_transformers_assists_with_it_without_a_word(pair, capsys, caplog):
    out = pair / "out"
    assert export(pair, "--format", "transformers", "--output", out, "--type", "float32") == 0
    target = AutoModelForCausalLM.from_pretrained(pair / "target")
    draft = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([[3, 7, 8, 9, 4]])
    call = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
    wanted = target.generate(ids, **call)
    capsys.readouterr()
    logging.getLogger("transformers").propagate = True
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        got = target.generate(ids, assistant_model=draft, **call)
    assert got.tolist() == wanted.tolist()
    # transformers says this of its own call of the draft.
    own = "Passing `generation_config` together with generation-related arguments"
    assert not [each for each in caplog.messages if not each.startswith(own)]


def test_number_formats(pair):
    for kind, dtype in (("bfloat16", "bfloat16"), ("auto", "float32")):
        assert export(pair, "--format", "vllm", "--output", pair / kind, "--type", kind) == 0
        assert json.loads((pair / kind / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--format", "vllm", "--output", "x.gguf"), "--format vllm writes a directory"),
        (("--format", "gguf", "--output", "x"), "--format gguf writes a .gguf file"),
        (("--format", "gguf", "--output", "x.gguf"), "name it as --target or --target-gguf"),
        (("--format", "gguf", "--output", "x.gguf", "--target-gguf", "no.gguf"), "there is no file no.gguf"),
        (("--format", "vllm", "--output", "x", "--type", "q8_0"), "--type q8_0 is for --format gguf"),
        (("--format", "vllm", "--output", "x", "--target-gguf", "t.gguf"), "--target-gguf is for --format gguf"),
        (("--format", "vllm", "--output", "target"), "already holds files"),
    ],
)
def test_bad_input_is_one_line(pair, arguments, line, capsys, monkeypatch):
    monkeypatch.chdir(pair)
    assert export(pair, *arguments) == 2
    said = capsys.readouterr().err.strip()
    assert line in said and "\n" not in said
    assert not (pair / "x.gguf").exists()


def test_another_tokenizer_is_refused(pair, capsys):
    other = make_model(layers=1)
    other.tokenizer = make_tokenizer(first_word="another")
    save(other, pair / "other")
    assert export(pair, "--format", "vllm", "--output", pair / "out", draft="other") == 2
    assert "different tokenizers" in capsys.readouterr().err


@pytest.mark.parametrize("rows", [65, 72])
def test_a_draft_of_another_tokenizer_is_written_for_universal_assisted_decoding(pair, rows, capsys):
    """transformers takes two models of one size for one tokenizer, so the draft gets another size where they agree."""
    target = make_model(layers=3)
    save(target, pair / "target")
    other = make_model(layers=1, seed=4, vocab_size=rows)
    other.tokenizer = make_tokenizer(first_word="another")
    save(other, pair / "other")
    out = pair / "out"
    assert export(pair, "--format", "transformers", "--output", out, draft="other") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "another tokenizer" in said and "transformers: loads" in said and "assistant_tokenizer" in said
    assert json.loads((out / "config.json").read_text())["vocab_size"] == (66 if rows == 65 else 72)
    assert (out / "tokenizer.json").read_bytes() == (pair / "other" / "tokenizer.json").read_bytes()
    prompt = torch.randint(5, REAL, (1, 8), generator=torch.Generator().manual_seed(0))
    settings = {"max_new_tokens": 12, "do_sample": False}
    alone = target.model.generate(prompt, **settings)
    tokenizers = {"tokenizer": target.tokenizer, "assistant_tokenizer": other.tokenizer}
    draft = AutoModelForCausalLM.from_pretrained(out)
    assisted = target.model.generate(prompt, assistant_model=draft, **tokenizers, **settings)
    assert assisted.tolist() == alone.tolist()


@pytest.mark.smollm2
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "auto"), ("llama", "q8_0"), ("qwen2", "float32"), ("qwen3", "float32")]
)
def test_a_gguf_holds_the_draft(family, kind, smollm2, gguf_path, tmp_path, monkeypatch, capsys):
    """Read back by transformers, whose reader of .gguf is not ours."""
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(1)
    config = make_config(family, layers=2, vocab_size=smollm2.vocab_size, tied=family == "llama", hidden=64)
    # transformers' reader takes no other size of heads for qwen3.
    config.head_dim = 128 if family == "qwen3" else 16
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "draft")
    smollm2.tokenizer.save_pretrained(tmp_path / "draft")
    out = tmp_path / "draft.gguf"
    arguments = ["--draft", str(tmp_path / "draft"), "--format", "gguf", "--output", str(out), "--type", kind]
    arguments += ["--target", str(smollm2.directory), "--target-gguf", str(gguf_path)]
    assert main(["export", *arguments]) == 0
    assert "llama.cpp: loads" in capsys.readouterr().out
    before, after = load_model(str(tmp_path / "draft"), "draft"), load_model(str(out), "draft")
    ids = torch.randint(0, 40000, (2, 30), generator=torch.Generator().manual_seed(0))
    wanted, got = hidden_logits(before, ids), hidden_logits(after, ids)
    closeness = {"float32": 1e-5, "auto": 1e-3, "q8_0": 2e-2}[kind]
    assert ((got - wanted).norm() / wanted.norm()) < closeness
    assert after.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    # A second run overwrites nothing.
    assert main(["export", *arguments]) == 2


@pytest.mark.smollm2
@pytest.mark.parametrize("trained", [None, 8])
def test_the_launch_of_a_gguf_drafts_one_token_per_pass(trained, smollm2, gguf_path, tmp_path, capsys):
    """llama.cpp knows no mask token: eight tokens would cost eight passes."""
    config = make_config("llama", layers=1, vocab_size=smollm2.vocab_size, tied=True, hidden=64)
    config.head_dim = 16
    if trained is not None:
        ParallelDrafting(smollm2.vocab_size - 1, trained).write_to(config)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "draft")
    smollm2.tokenizer.save_pretrained(tmp_path / "draft")
    arguments = ["--draft", str(tmp_path / "draft"), "--format", "gguf", "--output", str(tmp_path / "draft.gguf")]
    arguments += ["--target", str(smollm2.directory), "--target-gguf", str(gguf_path)]
    assert main(["export", *arguments]) == 0
    assert " --spec-draft-n-max 4\n" in capsys.readouterr().out


@pytest.mark.smollm2
def test_the_gguf_of_another_model_is_refused(pair, gguf_path, capsys):
    arguments = ("--format", "gguf", "--output", pair / "d.gguf", "--target-gguf", gguf_path)
    assert export(pair, *arguments) == 2
    assert "is of another tokenizer than the draft: id 0 is" in capsys.readouterr().err
    assert not (pair / "d.gguf").exists()


@pytest.mark.smollm2
def test_architectures_that_gguf_does_not_take_are_named(smollm2, gguf_path, tmp_path, capsys):
    config = make_config("gemma2", layers=2, vocab_size=smollm2.vocab_size)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "draft")
    smollm2.tokenizer.save_pretrained(tmp_path / "draft")
    arguments = ["--draft", str(tmp_path / "draft"), "--format", "gguf", "--output", str(tmp_path / "d.gguf")]
    assert main(["export", *arguments, "--target", str(smollm2.directory), "--target-gguf", str(gguf_path)]) == 2
    assert "of type 'gemma2'" in capsys.readouterr().err


def test_llama3_rope_factors_are_those_of_transformers():
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from specdistill.serving.gguf_writer import rope_factors

    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 1 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = rope_factors(config)
    assert factors is not None
    torch.testing.assert_close(plain / torch.from_numpy(factors), scaled)
