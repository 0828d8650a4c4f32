"""Adapters in every command: what is measured, trained on, written and printed is the merged model's."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
import wild_checkpoints as wild
from peft_adapters import make_adapter
from tiny_models import make_model, make_tokenizer, save
from transformers import AutoModelForCausalLM

from specdistill import BenchConfig, bench
from specdistill.cli import main
from specdistill.errors import DataError
from specdistill.files import parquet, run_settings
from specdistill.models import load_model
from specdistill.models.load import find
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.export import _llama_cpp
from specdistill.serving.export_config import ExportConfig
from specdistill.serving.gates import check


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A base, an adapter as target, the two merged by peft itself, and a draft with an adapter of its own."""
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "cache"))
    base = save(make_model(layers=2), tmp_path / "base")
    merged = make_adapter(base, tmp_path / "target", named="../base").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    make_tokenizer().save_pretrained(tmp_path / "merged")
    small = save(make_model(layers=1, seed=9), tmp_path / "small")
    make_adapter(small, tmp_path / "draft", named="../small")
    return tmp_path


def weights(directory) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


@pytest.mark.parametrize("command", [*wild.COMMANDS, "check"])
def test_every_command_takes_adapters(folder, command, capsys):
    assert wild.run(command, folder) == 0, capsys.readouterr().err
    if (folder / "out/config.json").exists():
        written = load_model(str(folder / "out"), "draft")
        assert written.adapter is None and not (folder / "out/adapter_config.json").exists()
    if command == "train-draft":
        card = (folder / "out/README.md").read_text()
        assert "vllm serve merged-target --spec" in card and "--merged-target merged-target` writes it" in card


@pytest.mark.parametrize("command", [*wild.COMMANDS, "check"])
def test_every_command_takes_the_base_that_is_named(folder, command, capsys):
    wild.change_json(folder / "target/adapter_config.json", base_model_name_or_path="./gone")
    assert wild.run(command, folder) == 2
    assert "the base ./gone of --target" in wild.one_line(capsys)
    assert wild.run(command, folder, ["--target-base", str(folder / "base")]) == 0, capsys.readouterr().err


def measure(folder, target: str, draft: str):
    settings = {"prompts": str(folder / "prompts.txt"), "num_prompts": 3, "latency_prompts": 1, "max_new_tokens": 8}
    (folder / "prompts.txt").write_text("w1 w2\nw3 w4\nw5 w6\n")
    return bench(BenchConfig.flat(target=str(folder / target), draft=str(folder / draft), **settings))


def test_alpha_is_that_of_the_merged_target(folder):
    """A draft that is the merged model agrees with it everywhere; the base alone is another model."""
    report = measure(folder, "target", "merged")
    assert [round(rule.mean, 5) for rule in report.acceptance.alpha.values()] == [1, 1, 1]
    assert report.acceptance.acceptance_rate.mean == 1 and report.lossless.greedy_identical
    assert report.target.adapter_of == str(folder / "base") and report.draft.adapter_of is None
    assert measure(folder, "target", "base").acceptance.alpha["greedy"].mean < 0.9


def test_answers_are_those_of_the_merged_target(folder, capsys):
    answers = {}
    for name in ("target", "merged", "base"):
        output = folder / f"answers-{name}"
        settings = ["--prompts", str(folder / "prompts.txt"), "--temperature", "0", "--max-new-tokens", "6"]
        (folder / "prompts.txt").write_text("w1 w2\nw3 w4\nw5 w6\n")
        assert main(["generate", "--target", str(folder / name), "--output", str(output), *settings]) == 0
        answers[name] = [row["answer_ids"] for row in parquet.read(next(output.rglob("*.parquet")))]
    assert answers["target"] == answers["merged"] != answers["base"]


def test_a_cut_of_an_adapter_holds_merged_layers(folder, capsys):
    assert wild.run("init-draft", folder) == 0
    (kept,) = json.loads((folder / "out/init_draft.json").read_text())["layers"]
    name = "self_attn.q_proj.weight"
    ours, theirs = weights(folder / "out"), weights(folder / "merged")
    torch.testing.assert_close(ours[f"model.layers.0.{name}"], theirs[f"model.layers.{kept}.{name}"])


def test_export_writes_both_models_merged(folder, capsys):
    written = str(folder / "served")
    assert wild.run("export", folder, ["--merged-target", written]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert f"vllm serve {written} " in said and "vllm: loads" in said and "first:" not in said
    assert f"the target with its adapter merged: {written}" in said
    for ours, theirs in ((folder / "served", weights(folder / "merged")), (folder / "out", None)):
        theirs = theirs or load_model(str(folder / "draft"), "draft").model.state_dict()
        for name, weight in weights(ours).items():
            torch.testing.assert_close(weight, theirs[name], msg=name)
    assert load_model(written).tokenizer.chat_template == make_tokenizer().chat_template
    assert measure(folder, "target", "served").acceptance.alpha["sampled"].mean == pytest.approx(1)
    assert wild.run("export", folder, ["--merged-target", written, "--output", str(folder / "more")]) == 2
    assert "choose another --merged-target" in wild.one_line(capsys)


def test_the_two_models_of_an_export_need_two_directories(folder, capsys):
    output = str(folder / "both")
    assert wild.run("export", folder, ["--merged-target", output, "--output", output]) == 2
    assert "--merged-target and --output are both" in wild.one_line(capsys) and not (folder / "both").exists()


@pytest.mark.parametrize(("target", "warned"), [("target", True), ("base", False)])
def test_the_gguf_beside_a_gguf_draft_must_hold_the_adapter(folder, target, warned):
    names = {
        "target": str(folder / target),
        "draft": "d",
        "output": "o.gguf",
        "format": "gguf",
        "target_gguf": "t.gguf",
    }
    verdict = _llama_cpp(ExportConfig.flat(**names), find(names["target"], "target"))
    assert [f"t.gguf must hold {names['target']} merged into its base" in text for text in verdict.warnings] == [
        True
    ] * warned


def test_a_merged_target_is_for_adapters(folder, capsys):
    assert wild.run("export", folder, ["--merged-target", str(folder / "x")], target=str(folder / "base")) == 2
    assert "--merged-target merges an adapter, and --target" in wild.one_line(capsys)


# ---- what the server must do


def verdicts(folder, target="target", draft="small", **settings):
    names = {"target": str(folder / target), "draft": str(folder / draft)}
    return {each.engine: each for each in check(CheckConfig.flat(**names, **settings))}


def test_check_prints_the_commands_that_make_the_pair_servable(folder, monkeypatch, capsys):
    """Run one after the other: what `first` writes is what the engine's command reads."""
    monkeypatch.chdir(folder)
    found = verdicts(folder)
    assert all(verdict.loads for verdict in found.values())
    assert found["vllm"].command.startswith("vllm serve merged-target ") and "exported-draft" in found["vllm"].command
    program, *words = shlex.split(found["vllm"].first[0])
    assert program == "specdistill" and main(words) == 0
    assert Path("merged-target/model.safetensors").is_file() and Path("exported-draft/model.safetensors").is_file()
    capsys.readouterr()
    assert main(["check", "--target", "merged-target", "--draft", "exported-draft"]) == 0
    served = capsys.readouterr().out
    assert "refuses" not in served and "first:" not in served and found["vllm"].command in served
    assert "convert_hf_to_gguf.py merged-target --outfile target.gguf" in found["llama.cpp"].first[1]


def test_check_names_the_base_that_the_user_named(folder):
    wild.change_json(folder / "target/adapter_config.json", base_model_name_or_path="./gone")
    found = verdicts(folder, target_base=str(folder / "base"))["vllm"]
    assert f"--target-base {folder / 'base'}" in found.first[0]


def test_a_drafts_adapter_must_be_written_merged(folder):
    found = verdicts(folder, target="merged", draft="draft")["vllm"]
    assert found.loads and found.alternative is None and "--merged-target" not in found.first[0]
    assert f"--draft {folder / 'draft'}" in found.first[0] and '"model": "exported-draft"' in found.command


def test_vllm_may_serve_the_adapter_beside_its_base(folder):
    found = verdicts(folder)["vllm"].alternative
    assert found is not None and found.startswith(f"vllm serve {folder / 'base'} --enable-lora --lora-modules tuned=")
    assert f"tuned={folder / 'target'} --speculative-config" in found
    make_adapter(folder / "base", folder / "target", named="../base", r=20)
    assert "--max-lora-rank 32" in str(verdicts(folder)["vllm"].alternative)


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"modules_to_save": ["embed_tokens"]}, {"bias": "all"}, {"r": 600}, {"rows": 70}]
)
def test_vllm_takes_plain_low_rank_matrices_only(folder, settings):
    make_adapter(folder / "base", folder / "target", named="../base", **settings)
    assert verdicts(folder)["vllm"].alternative is None


@pytest.mark.parametrize("role", ["target", "draft"])
def test_bench_starts_no_server_of_an_adapter(folder, role, monkeypatch, capsys):
    monkeypatch.setattr("specdistill.serving.engines.vllm_server.check_installed", lambda engine_args: None)
    models = {"target": str(folder / "merged"), "draft": str(folder / "small")} | {role: str(folder / role)}
    assert wild.run("bench", folder, ["--engine", "vllm"], **models) == 2
    assert f"{folder / role} is an adapter, and this engine is started with whole" in capsys.readouterr().err


# ---- a changed adapter under the same name


def retrain(folder) -> None:
    make_adapter(folder / "base", folder / "target", named="../base", seed=8)


@pytest.mark.parametrize("command", ["generate", "annotate"])
@pytest.mark.parametrize("changed", ["adapter", "base"])
def test_finished_answers_and_labels_are_not_mixed_with_those_of_another_state(folder, command, changed, capsys):
    more = ["--rollouts-per-prompt", "1"] if command == "generate" else []
    assert wild.run(command, folder, more) == 0
    assert wild.run(command, folder, more) == 0, "the same state goes on"
    capsys.readouterr()
    if changed == "adapter":
        retrain(folder)
    else:
        wild.change_weights(folder / "base", lambda named: named["model.norm.weight"].mul_(2))
    assert wild.run(command, folder, more) == 2
    error = wild.one_line(capsys)
    assert f"was made with the --target {folder / 'target'} on {folder / 'base'} (" in error
    assert "choose another --output, or restore the adapter" in error


def test_a_resumed_run_has_the_same_adapters(folder):
    labels = {"target": "a on b (1)"}
    run_settings.keep_adapters(folder, labels)
    run_settings.check_adapters(folder, labels)
    with pytest.raises(OSError, match=r"--target a on b \(1\), now it is a on b \(2\)"):
        run_settings.check_adapters(folder, {"target": "a on b (2)"})
    with pytest.raises(OSError, match="--draft that was no adapter, now it is c"):
        run_settings.check_adapters(folder, labels | {"draft": "c"})
    (folder / "adapters.json").write_text("{")
    with pytest.raises(DataError, match=r"adapters\.json can't be read"):
        run_settings.check_adapters(folder, labels)


def test_train_draft_resumes_with_the_same_adapter_only(folder, capsys):
    train = ["--resume", "--method", "seqkd"]
    assert wild.run("train-draft", folder, train) == 0
    card = (folder / "out/README.md").read_text()
    assert f"`{folder / 'target'}` is an adapter of `{folder / 'base'}`" in card and "--merged-target" in card
    kept = run_settings.adapters_of(folder / "out")
    assert set(kept) == {"target", "draft"} and str(folder / "small") in kept["draft"]
    (folder / "out/summary.json").unlink()
    retrain(folder)
    capsys.readouterr()
    assert wild.run("train-draft", folder, train) == 2
    assert f"was made with the --target {folder / 'target'} on" in wild.one_line(capsys)


@pytest.mark.parametrize("source", ["rollouts", "soft-labels"])
def test_answers_and_labels_of_another_state_are_warned_of(folder, source, capsys):
    more = ["--rollouts-per-prompt", "1", "--output", str(folder / "answers")]
    assert wild.run("generate", folder, more) == 0
    train = ["--method", "seqkd", "--rollouts", str(folder / "answers")]
    if source == "soft-labels":
        words = ["--rollouts", str(folder / "answers"), "--output", str(folder / "labels")]
        assert main(["annotate", "--target", str(folder / "target"), *words]) == 0
        train = ["--method", "supervised-kd", "--soft-labels", str(folder / "labels")]
    capsys.readouterr()
    assert wild.run("train-draft", folder, [*train, "--output", str(folder / "first")]) == 0
    assert "not by --target" not in (said := capsys.readouterr().err) and "not of --target" not in said
    retrain(folder)
    assert wild.run("train-draft", folder, train) == 0
    said = capsys.readouterr().err
    assert f"{folder / 'target'} on {folder / 'base'} (" in said and ("not by --t" in said or "not of --t" in said)
