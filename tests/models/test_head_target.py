"""A head works for the target that it was made for; another one of the same width is refused or named."""

from __future__ import annotations

import json
import shutil

import pytest
from head_drafts import make_head
from tiny_models import make_model, perturbed, save
from tiny_runs import cut_config, prompt_rows, train, write_rows

from specdistill import init_draft
from specdistill.cli import main
from specdistill.errors import IncompatibleModelsError
from specdistill.files.head_record import HeadRecord
from specdistill.models import load_pair
from specdistill.models.checkpoint import save_draft


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target of 8 layers, a fine-tune of it, another model of the same width, and heads at three stages."""
    folder = tmp_path_factory.mktemp("targets")
    target = make_model(layers=8)
    save(target, folder / "target")
    save(perturbed(target, 0.01), folder / "tuned")
    save(make_model(layers=4), folder / "other")
    write_rows(folder / "prompts.jsonl", prompt_rows(8))
    init_draft(cut_config(folder, folder / "fresh", kind="eagle3", layers=None, vocab_keep=40))
    few = {"method": "supervised-kd", "steps": 2, "eval_every": 2, "unroll": 2, "keep": "last"}
    train(folder, folder / "trained", draft=str(folder / "fresh"), **few)
    (folder / "bare").mkdir()
    save_draft(make_head(target), target, folder / "bare")
    return folder


def without_key(folder, name, place):
    """A head as older versions wrote it."""
    shutil.copytree(folder / name, place)
    config = json.loads((place / "config.json").read_text())
    assert config.pop("head_target_layers") == 8
    (place / "config.json").write_text(json.dumps(config))
    return place


def words_of(command, folder, target, draft, out):
    words = [command, "--target", str(folder / target), "--draft", str(draft)]
    more = {
        "bench": ["--prompts", str(folder / "prompts.jsonl")],
        "train-draft": ["--prompts", str(folder / "prompts.jsonl"), "--output", str(out)],
        "export": ["--format", "vllm", "--output", str(out)],
    }
    return [*words, *more[command]]


@pytest.mark.parametrize("command", ["bench", "train-draft", "export"])
@pytest.mark.parametrize(
    ("head", "older", "said"),
    [
        ("fresh", False, "target, layers 2, 4, 5 of 8 (by config.json)"),
        ("fresh", True, "target, layers 2, 4, 5 of 8 (by init_draft.json)"),
        ("trained", False, "target, layers 2, 4, 5 of 8 (by config.json)"),
        ("trained", True, "target, layers 2, 4, 5 of 8 (by the config.json of"),
        ("bare", False, "made for a target of 8 layers, layers 2, 4, 5 of 8 (by config.json)"),
    ],
)
def test_a_target_of_other_layers_is_refused_before_weights(
    folder, tmp_path, command, head, older, said, capsys, monkeypatch
):
    draft = without_key(folder, head, tmp_path / "head") if older else folder / head
    monkeypatch.setattr("specdistill.models.load.load_model", None)
    monkeypatch.setattr("specdistill.models.eagle3.files.load_file", None)
    assert main(words_of(command, folder, "other", draft, tmp_path / "out")) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert said in error and f"--target {folder / 'other'} has 4" in error
    assert "unexpected" not in error


def test_check_refuses_it_in_every_engine_that_takes_heads(folder, tmp_path, capsys):
    words = ["check", "--target", str(folder / "other"), "--draft", str(folder / "trained")]
    assert main([*words, "--json", str(tmp_path / "c.json")]) == 0
    assert "the target is named" not in "".join(capsys.readouterr()), "the refusal says it"
    engines = {each["engine"]: each for each in json.loads((tmp_path / "c.json").read_text())["engines"]}
    for name in ("vllm", "sglang", "llama.cpp"):
        assert "layers 2, 4, 5 of 8 (by config.json); the target has 4" in engines[name]["refusals"][0]


@pytest.mark.parametrize("command", ["check", "export"])
def test_a_target_of_another_name_is_said_once_and_taken(folder, tmp_path, command, capsys):
    report = tmp_path / "c.json"
    asked = {
        "check": ["check", "--json", str(report)],
        "export": ["export", "--format", "vllm", "--output", str(tmp_path / "out")],
    }[command]
    words = [*asked, "--draft", str(folder / "trained"), "--target"]
    assert main([*words, str(folder / "tuned")]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count(f"was made for {folder / 'target'}, and the target is named {folder / 'tuned'} now") == 1
    if report.exists():
        assert f"was made for {folder / 'target'}, and" in json.loads(report.read_text())["remark"]
        report.unlink()
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert main([*words, str(folder / "target")]) == 0
    assert not report.exists() or json.loads(report.read_text())["remark"] is None
    assert "was made for" not in "".join(capsys.readouterr())


def test_a_head_of_others_says_nothing_and_is_taken(folder, tmp_path):
    """Without any record the layers are derived, as engines derive them."""
    bare = without_key(folder, "bare", tmp_path / "bare")
    assert HeadRecord.read(bare) == HeadRecord(said_by="")
    assert load_pair(str(folder / "other"), str(bare), device="cpu").draft.head.aux_layers == (2, 3, 4)
    with pytest.raises(IncompatibleModelsError, match="other has 4"):
        load_pair(str(folder / "other"), str(folder / "bare"), device="cpu")


@pytest.mark.parametrize("words", [["check", "--draft"], ["carry-head", "--output", "o", "--base"]])
def test_a_mistyped_directory_is_said_in_our_words(folder, words, capsys):
    assert main([*words, "nohead", "--target", str(folder / "target")]) != 0
    error = " ".join(capsys.readouterr().err.split())
    assert "nohead: there is no directory of that name here, and as a hub id: nothing of it is cached" in error
    assert "snapshot" not in error and "HF_HUB_OFFLINE" not in error
