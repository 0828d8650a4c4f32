"""Quantised checkpoints as targets of every command: what is measured and learnt is the quantised model."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import wild_checkpoints as wild
from quantised_forms import FORMS
from tiny_models import make_model, save
from transformers import AutoModelForCausalLM

from specdistill import BenchConfig, bench
from specdistill.errors import ModelError
from specdistill.models import load_model

SIZES = {"hidden": 128, "layers": 2}
ROUNDED = ("compressed-tensors fp8", "bitsandbytes int8", "bitsandbytes nf4")
"""Forms whose activations are rounded too (nf4: by the kernel for CPUs), so that the plain weights are only near."""
IDS = torch.tensor([[3, 7, 8, 4, 20, 31], [3, 9, 12, 4, 5, 6]])


@pytest.fixture(params=FORMS)
def pair(tmp_path, request):
    """A quantised target, the plain weights that it stands for, the model before, and a small draft."""
    if "compressed" in request.param and importlib.util.find_spec("compressed_tensors") is None:
        pytest.skip("compressed-tensors, which alone reads this form, is not installed (pip install '.[dev]')")
    for name in ("target", "meant", "before"):
        save(make_model("llama", **SIZES), tmp_path / name)
    meant = AutoModelForCausalLM.from_pretrained(tmp_path / "meant")
    meant.load_state_dict(FORMS[request.param](tmp_path / "target"))
    meant.save_pretrained(tmp_path / "meant")
    save(make_model("llama", hidden=128, layers=1, seed=9), tmp_path / "draft")
    (tmp_path / "form").write_text(request.param)
    return tmp_path


def form(pair) -> str:
    return (pair / "form").read_text()


@pytest.mark.parametrize("command", ["check", "train-draft", "bench", "export", "generate", "annotate"])
def test_every_command_takes_it_as_target(pair, command, capsys):
    assert wild.run(command, pair) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "ressing" not in said.err + said.out, "no progress bars of a package"
    if command == "check":
        assert f"vllm serve {pair / 'target'} " in said.out and "vllm: loads" in said.out
    if command in ("train-draft", "export"):
        config = json.loads((pair / "out/config.json").read_text())
        assert "quantization_config" not in config and load_model(str(pair / "out"), "draft").vocab_size == 65


def test_it_says_what_its_weights_stand_for(pair):
    target, meant, before = (load_model(str(pair / name)) for name in ("target", "meant", "before"))
    with torch.no_grad():
        says, means, was = (model.logits(model.hidden_states(IDS)).flatten() for model in (target, meant, before))
    scale = means.std()
    near = (says - means).abs().max() / scale
    assert near < (0.3 if form(pair) in ROUNDED else 1e-4)
    assert (was - means).abs().max() / scale > 10 * near or form(pair) in ROUNDED
    # Each time the same: whatever unpacks itself at the first pass has done so.
    with torch.no_grad():
        assert torch.equal(target.logits(target.hidden_states(IDS)).flatten(), says)


def test_parameters_are_those_of_the_architecture(pair):
    target, before = load_model(str(pair / "target")), load_model(str(pair / "before"))
    assert target.num_parameters == before.num_parameters


def alpha(pair, draft: str) -> float:
    (pair / "prompts.txt").write_text("".join(f"w{i} w{i + 1}\n" for i in range(6)))
    names = {"target": str(pair / "target"), "draft": str(pair / draft), "prompts": str(pair / "prompts.txt")}
    report = bench(BenchConfig.flat(**names, temperature=1.0, max_new_tokens=12, latency_prompts=1))
    assert not report.lossless.differences
    return report.acceptance.alpha["sampled"].mean


def test_alpha_is_measured_against_the_quantised_target(pair):
    """The weights that it stands for agree with it fully, the model before it was quantised does not."""
    exact, full = alpha(pair, "meant"), alpha(pair, "before")
    if form(pair) not in ROUNDED:
        assert exact == pytest.approx(1, abs=1e-4)
    assert exact > full and full < 0.999


def test_training_learns_from_the_quantised_target(pair, capsys):
    """Its held-out alpha before training is that of the quantised target."""
    measured = {}
    for draft in ("meant", "before"):
        output = ["--output", str(pair / draft / "out"), "--method", "seqkd", "--max-new-tokens", "12"]
        code, error = wild.run("train-draft", pair, output, draft=str(pair / draft)), capsys.readouterr().err
        if form(pair) == "fp8 in blocks" and draft == "meant":
            assert code == 2 and "have the same weights" in error, "the target's weights are those that it stands for"
            return
        assert code == 0, error
        measured[draft] = json.loads((pair / draft / "out/summary.json").read_text())["before"]["sampled"]
    assert measured["meant"] > measured["before"]
    if form(pair) not in ROUNDED:
        assert measured["meant"] == pytest.approx(1, abs=1e-3)


def test_weights_that_stay_quantised_are_not_packed_again(pair, capsys):
    code = wild.run("bench", pair, ["--pack", "float32"])
    if form(pair) == "fp8 in blocks":
        assert code == 0
    else:
        assert code == 2 and "--pack float32 packs ordinary floats only" in wild.one_line(capsys)


def test_a_draft_must_be_whole(pair):
    if form(pair) != "fp8 in blocks":
        assert wild.run("export", pair, target=str(pair / "before"), draft=str(pair / "target")) == 2
        with pytest.raises(ModelError, match="is quantised already"):
            load_model(str(pair / "target"), keep="int8")
