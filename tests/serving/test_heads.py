"""Heads in engines: exports, what each engine's gate says, and a bench that scores them."""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import shutil

import gguf
import pytest
import torch
from fake_vllm import FakeVllm
from head_drafts import IDS, PROMPTS, make_head, taught_pair
from peft_adapters import make_adapter
from safetensors.torch import load_file, save_file
from tiny_models import make_model, save

from specdistill.cli import main
from specdistill.errors import ConfigError
from specdistill.models import load_pair
from specdistill.models.eagle3 import save_head
from specdistill.progress import Quiet
from specdistill.servers.client import ModelServer
from specdistill.serving import engine_models
from specdistill.serving.bench import bench
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engines import Opened
from specdistill.serving.gates import check
from specdistill.serving.served_engine import ServedEngine

taught = functools.cache(taught_pair)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    target, draft = taught()
    save(target, folder / "target")
    (folder / "head").mkdir()
    save_head(draft.head, folder / "head", 7)
    words = [" ".join(f"w{token - 5}" for token in prompt if token > 4) for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    return folder


def verdicts(target, draft, **settings):
    return {verdict.engine: verdict for verdict in check(CheckConfig.flat(target=target, draft=draft, **settings))}


@pytest.mark.parametrize("form", ["vllm", "sglang"])
def test_an_export_is_the_flat_files_with_the_targets_tokenizer(files, tmp_path, form, capsys):
    out = tmp_path / "out"
    words = ["export", "--target", str(files / "target"), "--draft", str(files / "head"), "--format", form]
    assert main([*words, "--type", "bfloat16", "--output", str(out)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "reads layers 2, 3, 4 of the target" in said and f"proposes {len(IDS)} of 65 ids" in said
    assert f"{form}: loads" in said and ("eagle3" in said or "EAGLE3" in said)
    before, after = load_file(files / "head/model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys() and torch.equal(before["d2t"], after["d2t"])
    assert after["fc.weight"].dtype == torch.bfloat16
    assert torch.equal(after["fc.weight"], before["fc.weight"].bfloat16())
    assert (out / "tokenizer.json").read_bytes() == (files / "target/tokenizer.json").read_bytes()
    pair = load_pair(str(files / "target"), str(out), device="cpu")
    assert pair.same_tokenizer and pair.draft.kept_ids.tolist() == IDS


def test_transformers_takes_no_head(files, tmp_path, capsys):
    words = ["export", "--target", str(files / "target"), "--draft", str(files / "head"), "--format", "transformers"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "transformers can't assist with" in capsys.readouterr().err and not list((tmp_path / "out").glob("*"))


def test_layers_that_sglang_would_count_otherwise_are_not_written(tmp_path, capsys):
    target = make_model(layers=3)
    save(target, tmp_path / "target")
    (tmp_path / "head").mkdir()
    save_head(make_head(target).head, tmp_path / "head", 3)
    words = ["export", "--target", str(tmp_path / "target"), "--draft", str(tmp_path / "head"), "--format"]
    assert main([*words, "sglang", "--output", str(tmp_path / "out")]) == 2
    assert "reads layers 1, 2, 3 of the target; SGLang counts layers" in capsys.readouterr().err
    found = verdicts(str(tmp_path / "target"), str(tmp_path / "head"))
    assert found["vllm"].loads and "SGLang adds 1" in found["sglang"].warnings[0]


def test_each_engines_launch(files):
    found = verdicts(str(files / "target"), str(files / "head"), num_draft_tokens=3)
    assert {name for name, verdict in found.items() if verdict.loads} == {"vllm", "sglang", "llama.cpp"}
    assert not any(verdict.warnings for verdict in found.values() if verdict.loads)
    assert found["transformers"].refusals == ["the draft is a head (eagle3), which transformers can't assist with"]
    assert "knows no launch of TensorRT-LLM" in found["tensorrt-llm"].refusals[0]
    speculative = json.loads(found["vllm"].command.split("--speculative-config ")[1].strip("'"))
    assert speculative == {"method": "eagle3", "model": str(files / "head"), "num_speculative_tokens": 3}
    assert "--speculative-algorithm EAGLE3" in found["sglang"].command
    assert "--spec-type draft-eagle3" in found["llama.cpp"].command and "--format gguf" in found["llama.cpp"].command


@pytest.mark.parametrize(
    ("edit", "engine", "reason"),
    [
        ({"target": {"model_type": "gpt2"}}, "vllm", "gives no hidden states of a gpt2 target"),
        ({"target": {"num_hidden_layers": 6}}, "vllm", "has 6 layers, and this engine reads layers 2, L/2 and L-3"),
        ({"target": {"num_hidden_layers": 6}}, "sglang", "has 6 layers, and this engine reads layers 2, L/2 and L-3"),
        ({"head": {"norm_before_residual": True}}, "sglang", "variant that SGLang's EAGLE-3 does not run"),
        ({"head": {"fc_norm": True}}, "llama.cpp", "variant that llama.cpp's EAGLE-3 does not run"),
        ({"head": {"target_hidden_size": 48}}, "vllm", "reads hidden states of 48 numbers, and the target's have 32"),
        ({"head": {"target_hidden_size": 48}}, "llama.cpp", "reads hidden states of 48 numbers"),
    ],
)
def test_each_engines_refusals(files, tmp_path, edit, engine, reason):
    for name in ("target", "head"):
        (tmp_path / name).mkdir()
        for file in (files / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        # Heads of others don't say how many layers their target had.
        config = tmp_path / name / "config.json"
        stored = json.loads(config.read_text())
        stored.pop("head_target_layers", None)
        config.write_text(json.dumps(stored))
        config = tmp_path / name / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | edit.get(name, {})))
    found = verdicts(str(tmp_path / "target"), str(tmp_path / "head"))[engine]
    assert len(found.refusals) == 1 and reason in found.refusals[0]


@pytest.mark.parametrize(("width", "loads"), [(32, True), (None, True), (48, False)])
def test_a_head_of_a_gguf_target(files, tmp_path, width, loads):
    """Its hidden size stands in the file's header."""
    writer = gguf.GGUFWriter(tmp_path / "target.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{number}" for number in range(65)])
    if width is not None:
        writer.add_embedding_length(width)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    verdict = verdicts(str(tmp_path / "target.gguf"), str(files / "head"))["llama.cpp"]
    assert verdict.loads == loads
    assert loads or "reads hidden states of 32 numbers, and the target's have 48" in verdict.refusals[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [("d2t", f"hold no d2t, which names the ids of its {len(IDS)} rows"), ("fc.weight", "hold no fc.weight")],
)
def test_a_head_that_lacks_tensors_loads_nowhere(files, tmp_path, name, message):
    shutil.copytree(files / "head", tmp_path / "head")
    weights = load_file(files / "head/model.safetensors")
    weights.pop(name)
    save_file(weights, tmp_path / "head/model.safetensors")
    for verdict in verdicts(str(files / "target"), str(tmp_path / "head")).values():
        assert not verdict.loads and any(message in reason for reason in verdict.refusals)


def test_a_head_of_an_adapter_is_exported_beside_the_merged_target(files, tmp_path, capsys, monkeypatch):
    """As `check` says; without --merged-target the printed server would be started on a directory without weights."""
    monkeypatch.chdir(tmp_path)
    make_adapter(files / "target", tmp_path / "adapter")
    pair = ["--target", "adapter", "--draft", str(files / "head")]
    assert main(["check", *pair]) == 0
    named = capsys.readouterr().out.splitlines()[-1].removeprefix("next: specdistill ")
    assert "--merged-target merged-target" in named and "--format vllm" in named
    assert main(shlex.split(named)) == 0
    assert "vllm serve merged-target --speculative-config" in capsys.readouterr().out
    assert (tmp_path / "merged-target/model.safetensors").is_file()
    assert load_pair("merged-target", "exported-draft", device="cpu").draft.kept_ids.tolist() == IDS
    # llama.cpp's command needs a form that exists for heads.
    assert not any("--format transformers" in line for each in verdicts(*pair[1::2]).values() for line in each.first)


def test_an_export_for_vllm_has_the_heads_own_weights_and_its_card(files, tmp_path):
    """The docs say that vLLM needs none."""
    shutil.copytree(files / "head", tmp_path / "head")
    (tmp_path / "head/README.md").write_text("# A head\n")
    command = ["export", "--target", str(files / "target"), "--draft", str(tmp_path / "head"), "--format", "vllm"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("head", "out"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert (tmp_path / "out/README.md").read_text().startswith("# A head\n\nThis is a copy of `")


def asked(files, **settings):
    defaults = {"prompts": str(files / "prompts.jsonl"), "raw_prompts": True, "max_new_tokens": 24}
    named = {"target": str(files / "target"), "draft": str(files / "head"), "engine": "vllm", "num_draft_tokens": 3}
    return BenchConfig.flat(**(named | defaults | {"engine_baselines": ("none",)} | settings))


def test_a_head_is_recognised_by_itself(files):
    assert engine_models.recognised(asked(files)).drafting.method == "eagle3"
    plain = asked(files, draft=str(files / "target"))
    assert engine_models.recognised(plain) is plain
    ours = asked(files, engine="specdistill", engine_baselines=("ngram",))
    assert engine_models.recognised(ours) is ours


def test_transformers_bench_of_a_head_is_one_line_before_models(files, capsys, monkeypatch):
    monkeypatch.setattr("specdistill.models.load.load_model", None)
    words = ["bench", "--target", str(files / "target"), "--draft", str(files / "head"), "--engine", "transformers"]
    assert main([*words, "--prompts", str(files / "prompts.jsonl")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "is a head (eagle3), which --engine transformers can't assist with; leave --engine away" in error


def test_a_head_of_the_hub_is_refused_too(files, monkeypatch):
    """Its config.json is known once it was found."""
    monkeypatch.setattr(engine_models, "_head_kind", lambda draft: None)
    config = asked(files, engine="transformers", engine_baselines=("ngram",))
    with pytest.raises(ConfigError, match="can't assist with"):
        engine_models.find(engine_models.recognised(config), print)


@pytest.mark.parametrize("method", ["eagle", "mtp", "dflash"])
def test_a_method_of_other_heads_is_refused(files, method):
    with pytest.raises(ConfigError, match=rf"is a head \(eagle3\), which --method {method} does not take; set"):
        engine_models.recognised(asked(files, method=method))


@contextlib.contextmanager
def served(config, models, length, context, progress):
    """Two servers that answer as vLLM does, one with the head."""
    target, draft = taught()
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft, num_draft_tokens=length) as drafting:

        def engine(server, tokens):
            client = ModelServer(server.url, None, concurrency=1, patience=5, timeout=60, remedy="", say=progress.say)
            return ServedEngine(client, models.target, tokens)

        yield Opened(engine(plain, 0), engine(drafting, length), {})


@pytest.mark.parametrize("method", ["draft", "eagle3"])
def test_a_servers_own_counters_are_what_was_predicted(files, method, monkeypatch):
    monkeypatch.setattr("specdistill.serving.bench.engines", served)
    monkeypatch.setattr("specdistill.serving.bench.check_methods", lambda config: None)
    report = bench(asked(files, method=method), Quiet())
    assert report.draft.kind == "eagle3" and report.draft.head_size == len(IDS)
    found = report.acceptance
    assert found.prediction.measured == pytest.approx(found.prediction.mean_acceptance_length.mean)
    assert found.mean_acceptance_length.mean > 1.1
    assert "it needs" in report.economics.why and "tokens per target call" in report.economics.why
