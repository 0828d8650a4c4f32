"""Launches of a head ask for the draft tokens that it was trained for: card, check, export and what comes next."""

from __future__ import annotations

import json
import re

import gguf
import pytest
from tiny_models import make_model, save
from tiny_runs import cut_config, prompt_rows, train, write_rows

from specdistill import init_draft
from specdistill.cli import main
from specdistill.serving import engine_models, gguf_writer
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.gates import check
from specdistill.serving.model_files import read


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths")
    save(make_model(layers=7), folder / "target")
    write_rows(folder / "prompts.jsonl", prompt_rows(8))
    init_draft(cut_config(folder, folder / "fresh", kind="eagle3", layers=None, vocab_keep=40))
    trained(folder, "head", "fresh", unroll=3)
    return folder


def trained(folder, name, start, **settings):
    few = {"method": "supervised-kd", "steps": 2, "eval_every": 2, "keep": "last", "draft": str(folder / start)}
    return train(folder, folder / name, **few | settings)


def asked(text: str) -> str:
    """Draft tokens of vLLM's launch."""
    (found,) = re.findall(r'"num_speculative_tokens": (\d+)', text)
    return found


def launches(folder, draft, **settings):
    verdicts = check(CheckConfig.flat(target=str(folder / "target"), draft=str(folder / draft), **settings))
    return {each.engine: each.command for each in verdicts}


def test_card_and_check_ask_for_the_unrolled_steps(folder):
    assert asked((folder / "head/README.md").read_text()) == "3"
    found = launches(folder, "head")
    assert asked(found["vllm"]) == "3"
    assert "--speculative-num-steps 3" in found["sglang"] and "--spec-draft-n-max 3" in found["llama.cpp"]
    assert asked(launches(folder, "head", num_draft_tokens=5)["vllm"]) == "5"
    assert asked(launches(folder, "fresh")["vllm"]) == "4", "a fresh head was trained for none"


def test_bench_asks_an_engine_for_them_too(folder):
    named = {"target": str(folder / "target"), "engine": "vllm"}
    for draft, length in (("head", 3), ("fresh", 0)):
        config = engine_models.recognised(BenchConfig.flat(**named, draft=str(folder / draft)))
        assert engine_models.with_length(config, engine_models.find(config, print)).num_draft_tokens == length


@pytest.mark.parametrize(("start", "expected"), [("fresh", "4"), ("head", "3")])
def test_a_run_that_keeps_its_start_writes_the_starts_length(folder, start, expected):
    name = f"kept-{start}"
    summary = trained(folder, name, start, unroll=2, learning_rate=1e-30, keep="best", max_new_tokens=8)
    assert summary.kept_step == 0
    assert asked((folder / name / "README.md").read_text()) == expected
    assert asked(launches(folder, name)["vllm"]) == expected


def test_another_length_replaces_the_one_before(folder):
    trained(folder, "again", "head", unroll=2)
    assert asked(launches(folder, "again")["vllm"]) == asked((folder / "again/README.md").read_text()) == "2"


def test_an_export_and_the_bench_that_it_proposes_ask_for_it_too(folder, capsys):
    words = ["export", "--target", str(folder / "target"), "--draft", str(folder / "head"), "--format", "vllm"]
    assert main([*words, "--output", str(folder / "served")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert asked(said) == "3" and "--engine vllm --num-draft-tokens 3 --prompts" in said
    assert asked(launches(folder, "served")["vllm"]) == "3"
    words[words.index(str(folder / "head"))] = str(folder / "fresh")
    assert main([*words, "--output", str(folder / "served-fresh")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert asked(said) == "4" and "--num-draft-tokens" not in said


def exported(folder, monkeypatch, capsys, layers=7, width=32):
    """Lines of the export of a head that is served beside a file of these sizes."""
    served, output = folder / f"target-{layers}-{width}.gguf", folder / f"head-{layers}-{width}.gguf"
    writer = gguf.GGUFWriter(served, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(65)])
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    fields = {name: field for name, field in gguf.GGUFReader(served).fields.items() if name.startswith("tokenizer.")}
    tokens = [f"t{number}" for number in range(65)]
    monkeypatch.setattr(gguf_writer, "served_tokenizer", lambda draft, file: (fields, tokens))
    words = ["export", "--target", str(folder / "target"), "--draft", str(folder / "head"), "--format", "gguf"]
    assert main([*words, "--target-gguf", str(served), "--output", str(output)]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("sizes", "words"), [({"layers": 4}, "has 4 layers"), ({"width": 48}, "has 48 numbers in a hidden state")]
)
def test_the_file_of_another_model_is_warned_of_with_the_heads_target(folder, monkeypatch, capsys, sizes, words):
    said = exported(folder, monkeypatch, capsys, **sizes)
    assert f"{words}, and the head was made for {folder / 'target'}, which has" in said and "BEWARE" in said


def test_a_gguf_head_keeps_its_length_and_its_targets_layers(folder, monkeypatch, capsys):
    said = exported(folder, monkeypatch, capsys)
    assert f"made for {folder / 'target'}: " in said and "BEWARE" not in said and "refuses" not in said
    assert "--spec-draft-n-max 3" in said and "--num-draft-tokens 3" in said
    config = read(str(folder / "head-7-32.gguf"), "draft").config
    assert (config["head_target_layers"], config["head_draft_tokens"]) == (7, 3)
    save(make_model(layers=4), folder / "other")
    verdicts = check(CheckConfig.flat(target=str(folder / "other"), draft=str(folder / "head-7-32.gguf")))
    (found,) = (each for each in verdicts if each.engine == "llama.cpp")
    assert "made for a target of 7 layers" in found.refusals[0] and "--spec-draft-n-max 3" in found.command


def test_the_key_is_in_the_files_of_a_trained_head_alone(folder):
    stored = {name: json.loads((folder / name / "config.json").read_text()) for name in ("fresh", "head")}
    assert "head_draft_tokens" not in stored["fresh"] and stored["head"]["head_draft_tokens"] == 3
