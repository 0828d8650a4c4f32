"""The target's own head: found by `check`, lost by a fine-tune, carried back tensor for tensor or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own_heads import WEIGHTS, make_base
from safetensors.torch import load_file, save_file
from tiny_models import make_model, make_tokenizer, save
from transformers import AutoModelForCausalLM

from specdistill.cli import main
from specdistill.files.atomic import umask
from specdistill.serving import head_files
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.own_head import find_own_head

INDEX = "model.safetensors.index.json"
CLAIMS = {"qwen3_5_text": {"mtp_num_hidden_layers": 1}, "qwen3_next": {}, "glm4_moe": {"num_nextn_predict_layers": 1}}


def fine_tune(base: Path, target: Path, **saving) -> None:
    """Every weight changes a bit, as in training; transformers loads and saves what it knows."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    model.save_pretrained(target, **saving)
    make_tokenizer(60).save_pretrained(target)


@pytest.fixture(scope="module", params=CLAIMS)
def family(request, tmp_path_factory):
    """(type, folder, head): `base` with its head, and `target`, which lost it."""
    kind, folder = request.param, tmp_path_factory.mktemp("heads")
    head = make_base(kind, folder / "base", **CLAIMS[kind])
    fine_tune(folder / "base", folder / "target")
    return kind, folder, head


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor, read by way of the index, from the file that the index names."""
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in set(listed.values())}
    assert sum(map(len, files.values())) == len(listed)
    return {name: files[file][name] for name, file in listed.items()}


def added_file(folder: Path) -> str:
    return max(path.name for path in folder.glob("*.safetensors"))


def carry(folder: Path, output="out", base="base", target="target") -> int:
    names = {"--base": base, "--target": target, "--output": output}
    return main(["carry-head", *(word for flag, name in names.items() for word in (flag, str(folder / name)))])


def state_of(folder: Path):
    return find_own_head(CheckConfig.flat(target=str(folder)))


def test_lost_by_a_fine_tune_found_by_check_carried_and_equal(family, tmp_path, capsys):
    kind, folder, head = family
    base, target = folder / "base", folder / "target"
    here = state_of(base)
    assert (here.state, here.tensors, here.parameters) == ("here", len(head), sum(t.numel() for t in head.values()))
    saved = load_file(target / WEIGHTS)
    assert not set(saved) & set(head), "save_pretrained drops what the architecture has no place for"
    before = contents(folder)
    assert main(["check", "--target", str(target)]) == 0
    printed = capsys.readouterr().out
    reason = next(iter(CLAIMS[kind]), None)
    assert "own head: lost" in printed and (f"{reason} 1" if reason else "qwen3_next models ship one") in printed
    # The remedy is a command: it is run as it is printed, with the base's name.
    (line,) = [line for line in printed.splitlines() if "bring it back: " in line]
    words = shlex.split(line.partition("bring it back: ")[2])
    output = tmp_path / "out"
    words[words.index("BASE")], words[words.index("--output") + 1] = str(base), str(output)
    assert words[0] == "specdistill" and main(words[1:]) == 0
    assert f"{len(head)} tensors" in capsys.readouterr().out
    assert contents(folder) == before, "neither side is changed"
    carried = weights_of(output)
    assert carried.keys() == saved.keys() | head.keys()
    for name, tensor in (saved | head).items():
        assert carried[name].dtype == tensor.dtype and torch.equal(carried[name], tensor), name
    config = json.loads((output / "config.json").read_text())
    assert {name: config[name] for name in CLAIMS[kind]} == CLAIMS[kind]
    metadata = json.loads((output / INDEX).read_text())["metadata"]
    assert metadata["total_size"] == sum(tensor.nbytes for tensor in (saved | head).values())
    again = state_of(output)
    assert (again.state, again.tensors) == ("here", len(head)) and '"method": "mtp"' in again.commands["vllm"]
    modes = {path.name: path.stat().st_mode & 0o777 for path in output.glob("*.safetensors")}
    assert modes[added_file(output)] == 0o666 & ~umask(), "servers of other users read it"
    assert (output / "tokenizer.json").read_bytes() == (target / "tokenizer.json").read_bytes()
    # The model itself is the target's own.
    ids = torch.tensor([[5, 6, 7, 8]])
    models = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (target, output))
    ours, theirs = (model(ids).logits for model in models)
    assert torch.equal(ours, theirs)


def test_settings_that_the_fine_tune_dropped_come_back(tmp_path):
    make_base("qwen3_5_text", tmp_path / "base", mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=0)
    fine_tune(tmp_path / "base", tmp_path / "target")
    config = json.loads((tmp_path / "target/config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.startswith("mtp")}
    (tmp_path / "target/config.json").write_text(json.dumps(kept | {"mine": 3}))
    assert state_of(tmp_path / "target").state == "none"
    # A release that leaves a size to its type's default.
    base = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({k: v for k, v in base.items() if k != "head_dim"}))
    assert carry(tmp_path) == 0
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert written == kept | {"mine": 3, "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": 0}


def test_a_target_in_several_files_and_a_base_in_several(tmp_path):
    head = make_base("qwen3_next", tmp_path / "one")
    whole = load_file(tmp_path / "one" / WEIGHTS)
    # The base as it is released: in shards, the head's tensors in two of them.
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_bytes((tmp_path / "one/config.json").read_bytes())
    names, listed = sorted(whole), {}
    for place in range(3):
        file = f"model-0000{place + 1}-of-00003.safetensors"
        save_file({name: whole[name] for name in names[place::3]}, tmp_path / "base" / file)
        listed |= dict.fromkeys(names[place::3], file)
    (tmp_path / "base" / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    fine_tune(tmp_path / "one", tmp_path / "target", max_shard_size="60KB")
    before = json.loads((tmp_path / "target" / INDEX).read_text())
    shards = len(set(before["weight_map"].values()))
    assert shards > 1
    assert carry(tmp_path) == 0
    carried = weights_of(tmp_path / "out")
    assert all(torch.equal(carried[name], tensor) for name, tensor in head.items())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{shards + 1:05d}.safetensors" for n in range(1, shards + 2)]
    after = json.loads((tmp_path / "out" / INDEX).read_text())["metadata"]
    added = sum(tensor.numel() for tensor in head.values())
    assert after["total_size"] == before["metadata"]["total_size"] + 4 * added
    if "total_parameters" in before["metadata"]:
        assert after["total_parameters"] == before["metadata"]["total_parameters"] + added
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), tuned.parameters(), strict=True))


KILLED = """
import os, signal, sys
from specdistill.serving import carry_head
from specdistill.cli import main
where, real = sys.argv[1], {}
for name in ("_save", "_write_config"):
    real[name] = getattr(carry_head, name)
def killed(*arguments):
    if where == "_write_config":
        real[where](*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(carry_head, where, killed)
main(sys.argv[2:])
"""


@pytest.mark.parametrize("made", [False, True], ids=["new", "empty"])
@pytest.mark.parametrize("where", ["_save", "_write_config"])
def test_kill_9_in_the_middle_leaves_nothing_half_made(tmp_path, where, made):
    make_base("qwen3_next", tmp_path / "base")
    fine_tune(tmp_path / "base", tmp_path / "target")
    output = tmp_path / "results/out"
    if made:
        output.mkdir(parents=True)
    before = contents(tmp_path / "target")
    words = ["carry-head", "--base", str(tmp_path / "base"), "--target", str(tmp_path / "target")]
    words += ["--output", str(output)]
    done = subprocess.run([sys.executable, "-c", KILLED, where, *words], env=os.environ, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert output.exists() == made and not (made and list(output.iterdir()))
    assert contents(tmp_path / "target") == before
    # The same command again, beside what the killed one left.
    assert main(words) == 0 and state_of(output).state == "here"


def test_an_interruption_removes_what_was_copied(tmp_path, monkeypatch):
    make_base("qwen3_next", tmp_path / "base")
    fine_tune(tmp_path / "base", tmp_path / "target")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("specdistill.serving.carry_head._save", interrupted)
    assert carry(tmp_path) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "target"]


def one_line(capsys) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specdistill: ")]
    assert "unexpected" not in line.lower()
    return line


def rewrite(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.fixture
def pair(tmp_path):
    make_base("qwen3_next", tmp_path / "base")
    fine_tune(tmp_path / "base", tmp_path / "target")
    return tmp_path


def widen(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.gate.weight"] = torch.zeros(5, 32)
    save_file(weights, folder / WEIGHTS)


def cut(folder: Path, missing: int = 1000) -> None:
    """Ends the weights too early; with a negative number, too late."""
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) - missing] + b"\0" * -missing)


def list_nothing(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text('{"weight_map": 5}')


def make_adapter_of(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize(
    ("break_it", "text"),
    [
        (lambda folder: rewrite(folder / "target", hidden_size=64), "hidden_size is 32 in the base and 64"),
        (lambda folder: rewrite(folder / "target", num_hidden_layers=5), "num_hidden_layers is 4 in the base and 5"),
        (
            lambda folder: rewrite(folder / "target", model_type="qwen3"),
            "that the target was fine-tuned from as --base",
        ),
        (
            lambda folder: rewrite(folder / "base", quantization_config={"quant_method": "fp8"}),
            "the base's weights are quantised by fp8 and the target's not quantised",
        ),
        (lambda folder: widen(folder / "target"), "gate.weight is [4, 32] in the base and [5, 32] in the target"),
        (lambda folder: make_adapter_of(folder / "target"), "is an adapter; write the merged model first"),
        (lambda folder: (folder / "target" / WEIGHTS).unlink(), "holds no weights"),
        (lambda folder: (folder / "base" / WEIGHTS).write_bytes(b"\1"), "can't read --base"),
        (lambda folder: cut(folder / "base"), f"base/{WEIGHTS} is incomplete: it has "),
        (lambda folder: cut(folder / "target"), f"target/{WEIGHTS} is incomplete: it has "),
        (lambda folder: cut(folder / "target", -7), f"target/{WEIGHTS} is damaged: it has "),
        (lambda folder: list_nothing(folder / "base"), f"{INDEX} is damaged: its weight_map names no files"),
    ],
    ids=[
        *("hidden", "layers", "type", "quantised", "shape", "adapter", "no-weights", "damaged"),
        *("cut-base", "cut-target", "long-target", "broken-index"),
    ],
)
def test_what_does_not_fit_is_one_line_and_nothing_is_written(pair, capsys, break_it, text):
    break_it(pair)
    assert carry(pair) == 2
    assert text in one_line(capsys) and not (pair / "out").exists()


def test_what_is_not_there_or_there_already(pair, capsys):
    assert carry(pair, base="target", target="base") == 2
    assert "holds no head of its own although qwen3_next models ship one" in one_line(capsys)
    assert carry(pair, base="base", target="base") == 2
    assert "--base and --target both name" in one_line(capsys)
    assert carry(pair, output="target") == 2
    assert "--target and --output both name" in one_line(capsys)
    assert carry(pair) == 0
    capsys.readouterr()
    assert carry(pair) == 2
    assert "already holds files; choose another --output" in one_line(capsys)
    assert carry(pair, target="out", output="more") == 2
    assert "holds a head already" in one_line(capsys) and not (pair / "more").exists()
    assert carry(pair, target="nowhere", output="more") == 2
    assert "does not exist" in one_line(capsys)
    (pair / "x.gguf").write_bytes(b"")
    assert carry(pair, target="x.gguf", output="more") == 2
    assert "takes checkpoint directories" in one_line(capsys)


def test_added_tokens_do_not_hinder_a_head_without_rows_and_refuse_one_with(tmp_path, capsys):
    for kind, fits in (("qwen3_next", True), ("glm4_moe", False)):
        folder = tmp_path / kind
        make_base(kind, folder / "base", **CLAIMS[kind])
        fine_tune(folder / "base", folder / "target")
        model = AutoModelForCausalLM.from_pretrained(folder / "target")
        model.resize_token_embeddings(70)
        model.save_pretrained(folder / "target")
        assert (carry(folder) == 0) == fits
        if not fits:
            assert "has a row for each of the base's 65 tokens, and the target has 70" in one_line(capsys)


def test_a_text_model_saved_out_of_a_multimodal_one_gets_renamed_layers(tmp_path):
    """GLM-OCR's form: the head is one more layer of `model.language_model`, the fine-tune the text model alone."""
    head = make_base("glm4_moe", tmp_path / "base", num_nextn_predict_layers=1)
    fine_tune(tmp_path / "base", tmp_path / "target")
    weights = load_file(tmp_path / "base" / WEIGHTS)
    nested = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in weights.items()}
    save_file(nested, tmp_path / "base" / WEIGHTS)
    text = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({"model_type": "glm_ocr", "text_config": text}))
    assert carry(tmp_path) == 0
    carried = weights_of(tmp_path / "out")
    assert all(torch.equal(carried[name], tensor) for name, tensor in head.items())


@pytest.mark.parametrize(
    ("name", "belongs"),
    [
        ("mtp.fc.weight", True),
        ("mtp.layers.0.mlp.experts.3.up_proj.weight", True),
        ("model.mtp.layers.0.eh_proj.weight", True),
        ("model.mtp_layers.0.input_proj.weight", True),
        ("model.mtp_block.0.self_attn.q_proj.weight", True),
        ("model.mtp_emb_norm.0.weight", True),
        ("language_model.mtp.layers.0.norm.weight", True),
        ("model.layers.4.eh_proj.weight", True),
        ("model.language_model.layers.4.enorm.weight", True),
        ("model.layers.3.mlp.up_proj.weight", False),
        ("model.visual.blocks.7.norm1.weight", False),
        ("vision_tower.encoder.layers.20.norm.weight", False),
        ("model.layers.3.smtp.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_names_of_the_families_that_vllm_serves(name, belongs):
    assert head_files.head_names([name], {"num_hidden_layers": 4}) == ([name] if belongs else [])


@pytest.mark.parametrize(
    ("config", "claim"),
    [
        ({"num_nextn_predict_layers": 1}, "num_nextn_predict_layers 1"),
        ({"num_nextn_predict_layers": 0, "model_type": "qwen3_next"}, None),
        ({"text_config": {"mtp_num_hidden_layers": 2}}, "mtp_num_hidden_layers 2"),
        ({"num_mtp_modules": 3, "text_config": {"hidden_size": 4}}, "num_mtp_modules 3"),
        ({"mtp_config": {"num_nextn_predict_layers": 2}}, "num_nextn_predict_layers 2"),
        ({"model_type": "qwen3_next"}, "qwen3_next models ship one"),
        ({"model_type": "llama"}, None),
    ],
)
def test_claims_of_a_configuration(config, claim):
    found = head_files.claim(config)
    assert found is None if claim is None else claim in str(found)


def test_check_of_a_target_without_a_head_and_of_one_whose_weights_are_not_here(tmp_path, capsys):
    save(make_model(layers=1), tmp_path / "plain")
    assert main(["check", "--target", str(tmp_path / "plain"), "--json", str(tmp_path / "found.json")]) == 0
    assert "own head: none (nothing in config.json says so)" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["engines"] == [] and found["own_head"]["state"] == "none"
    make_base("qwen3_next", tmp_path / "hub")
    (tmp_path / "hub" / WEIGHTS).unlink()
    assert state_of(tmp_path / "hub").state == "unknown"
    # A hub id of several files: the index alone tells.
    (tmp_path / "hub" / INDEX).write_text(json.dumps({"weight_map": {"mtp.fc.weight": "model-1.safetensors"}}))
    listed = state_of(tmp_path / "hub")
    assert (listed.state, listed.tensors, listed.parameters) == ("here", 1, 0)


def head_draft(folder: Path, **config) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 65, "hidden_size": 32} | config))
    (folder / WEIGHTS).write_bytes((2).to_bytes(8, "little") + b"{}")
    return str(folder)


@pytest.mark.parametrize(
    ("config", "method", "loading"),
    [
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "eagle3", {"vllm", "sglang", "llama.cpp"}),
        ({"architectures": ["Eagle3Speculator"], "transformer_layer_config": {"vocab_size": 65, "hidden_size": 32}},
         "eagle3", {"vllm", "sglang", "llama.cpp"}),
        ({"architectures": ["DFlashDraftModel"]}, "dflash", {"vllm", "llama.cpp"}),
        ({"model_type": "gemma4_assistant", "backbone_hidden_size": 32, "hidden_size": 16}, "mtp",
         {"vllm", "llama.cpp", "transformers"}),
    ],
)  # fmt: skip
def test_check_of_a_head_as_the_draft(tmp_path, config, method, loading, capsys):
    target = str(save(make_model(layers=7), tmp_path / "target"))
    words = ["check", "--target", target, "--draft", head_draft(tmp_path / "head", **config), "--num-draft-tokens", "3"]
    assert main([*words, "--json", str(tmp_path / "found.json")]) == 0
    engines = {each["engine"]: each for each in json.loads((tmp_path / "found.json").read_text())["engines"]}
    assert {name for name, each in engines.items() if each["loads"]} == loading
    speculative = json.loads(shlex.split(engines["vllm"]["command"])[-1])
    assert speculative == {"method": method, "model": str(tmp_path / "head"), "num_speculative_tokens": 3}


def test_a_head_of_another_target(tmp_path, capsys):
    target = str(save(make_model(layers=1), tmp_path / "target"))
    draft = head_draft(tmp_path / "head", architectures=["LlamaForCausalLMEagle3"], target_hidden_size=48)
    assert main(["check", "--target", target, "--draft", draft]) == 0
    assert "reads hidden states of 48 numbers, and the target's have 32" in capsys.readouterr().out
