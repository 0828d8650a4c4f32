"""Checkpoints whose weights are quantised already: read where transformers can, named where a package is missing."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import wild_checkpoints as wild
from tiny_models import make_model, save
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from specdistill.cli import main
from specdistill.models import cut_draft, load_model
from specdistill.models.checkpoint import save_draft
from specdistill.models.load import find
from specdistill.models.quantised import loading_settings

SIZES = {"hidden": 128, "layers": 3}


@pytest.fixture
def pair(tmp_path):
    save(make_model("qwen3", **SIZES), tmp_path / "target")
    save(make_model("qwen3", hidden=128, layers=1, seed=9), tmp_path / "draft")
    return tmp_path


def quantise_by(directory, method: str, **settings) -> None:
    wild.change_json(directory / "config.json", quantization_config={"quant_method": method} | settings)


def command(pair, name: str) -> list[str]:
    short = ["--prompts", str(pair / "prompts.txt")]
    (pair / "prompts.txt").write_text("".join(f"w{i} w{i + 1}\n" for i in range(6)))
    output, draft = ["--output", str(pair / "out")], ["--draft", str(pair / "draft")]
    return [
        name,
        "--target",
        str(pair / "target"),
        *{
            "bench": [*draft, *short, "--max-new-tokens", "4", "--num-prompts", "2", "--num-draft-tokens", "2"],
            "init-draft": ["--layers", "1", "--calibration-tokens", "4", *short, *output],
            "train-draft": [
                *("--method", "seqkd", "--steps", "1", "--heldout-prompts", "2", "--max-new-tokens", "4"),
                *(*draft, *short, *output),
            ],
            "generate": [*short, "--max-new-tokens", "4", *output],
            "export": [*draft, "--format", "vllm", *output],
        }[name],
    ]


# ---- FP8 in blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scales", [torch.float32, torch.bfloat16])
def test_block_fp8_weights_are_the_values_they_stand_for(pair, dtype, scales):
    meant = wild.block_fp8(pair / "target", scales)
    loaded = load_model(str(pair / "target"), dtype=dtype)
    weights = loaded.model.state_dict()
    assert weights.keys() == meant.keys() and {weight.dtype for weight in weights.values()} == {dtype}
    close = {"rtol": 1e-6, "atol": 0} if dtype == torch.float32 else {}
    for name, weight in weights.items():
        torch.testing.assert_close(weight.float(), meant[name].to(dtype).float(), **close)
    assert loaded.logits(loaded.hidden_states(torch.tensor([[5, 6, 7]]))).isfinite().all()


@pytest.mark.parametrize("name", ["bench", "init-draft", "train-draft", "generate", "export"])
def test_every_command_takes_block_fp8(pair, name, capsys):
    wild.block_fp8(pair / "target")
    wild.block_fp8(pair / "draft")
    assert main(command(pair, name)) == 0, capsys.readouterr().err
    if (pair / "out/config.json").exists():
        assert "quantization_config" not in json.loads((pair / "out/config.json").read_text())
        load_model(str(pair / "out"), "draft")


def test_a_cut_of_fp8_weights_is_plain_and_holds_them(pair):
    meant = wild.block_fp8(pair / "target")
    target = load_model(str(pair / "target"))
    (pair / "out").mkdir()
    save_draft(cut_draft(target, [2]), target, pair / "out")
    assert "quantization_config" not in json.loads((pair / "out/config.json").read_text())
    name = "mlp.up_proj.weight"
    saved = load_model(str(pair / "out")).model.state_dict()[f"model.layers.0.{name}"]
    torch.testing.assert_close(saved, meant[f"model.layers.2.{name}"].bfloat16().float())


def test_fp8_weights_become_floats_on_every_machine(pair):
    """On a CPU transformers does so by itself; on a GPU their layers would need kernels from the hub."""
    wild.block_fp8(pair / "target")
    asked = loading_settings(find(str(pair / "target"), "target").config)
    assert asked is not None and asked.dequantize
    assert loading_settings(find(str(pair / "draft"), "draft").config) is None


def test_a_cut_keeps_no_quantization_config(pair):
    """Whatever a quantiser left in the configuration: the weights that are written are plain."""
    target = load_model(str(pair / "target"))
    draft = cut_draft(target, [2])
    draft.model.config.quantization_config = {"quant_method": "modelopt"}
    (pair / "out").mkdir()
    save_draft(draft, target, pair / "out")
    assert "quantization_config" not in json.loads((pair / "out/config.json").read_text())


# ---- what can't be read


@pytest.mark.parametrize(
    ("method", "settings", "package"),
    [
        ("gptq", {"bits": 4, "group_size": 128}, "optimum gptqmodel"),
        ("awq", {"bits": 4, "group_size": 128}, "gptqmodel"),
        ("compressed-tensors", {"format": "pack-quantized", "config_groups": {}}, "compressed-tensors"),
    ],
)
@pytest.mark.parametrize("name", ["bench", "generate"])
def test_the_missing_package_is_named(pair, name, method, settings, package, capsys, monkeypatch):
    found = importlib.util.find_spec
    absent = ("optimum", "gptqmodel", "compressed_tensors")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name in absent else found(name, *more))
    quantise_by(pair / "target", method, **settings)
    assert main(command(pair, name)) == 2
    error = wild.one_line(capsys)
    assert f"is quantised by {method}, which needs: pip install {package}" in error
    assert not list((pair / "out").rglob("*"))


@pytest.mark.parametrize("name", ["bench", "init-draft", "train-draft", "generate"])
@pytest.mark.parametrize("place", ["config.json", "hf_quant_config.json"])
def test_modelopt_is_refused_and_not_measured_without_its_scales(pair, name, place, capsys):
    if place == "config.json":
        quantise_by(pair / "target", "modelopt", quant_algo="FP8")
    else:
        side = {"producer": {"name": "modelopt", "version": "0.33"}, "quantization": {"quant_algo": "FP8"}}
        (pair / "target" / place).write_text(json.dumps(side))
    assert main(command(pair, name)) == 2
    error = wild.one_line(capsys)
    assert "--target" in error and "quantised by modelopt, which transformers can't read" in error
    assert not list((pair / "out").rglob("*"))


def test_fp8_weights_under_a_plain_configuration_are_refused(pair, capsys):
    """Somebody removed `quantization_config`: without the scales it is another model."""
    wild.block_fp8(pair / "target")
    wild.change_json(pair / "target/config.json", quantization_config=None)
    assert main(command(pair, "generate")) == 2
    said = wild.one_line(capsys)
    assert "model.layers.0.mlp.down_proj.weight is stored in integers or one-byte floats" in said


# ---- bitsandbytes


@pytest.fixture(params=["int8", "nf4"])
def saved_by_bitsandbytes(pair, request):
    """Saved in 8 or 4 bits, as for a smaller download."""
    kind = {"load_in_8bit": True} if request.param == "int8" else {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    # On CPUs bitsandbytes multiplies 32 rows at a time, which Llama's heads of 32 fill.
    plain = make_model("llama", **SIZES)
    save(plain, pair / "target")
    save(make_model("llama", hidden=128, layers=1, seed=9), pair / "draft")
    small = AutoModelForCausalLM.from_pretrained(pair / "target", quantization_config=BitsAndBytesConfig(**kind))
    (pair / "target" / wild.WEIGHTS).unlink()
    small.save_pretrained(pair / "target")
    return plain


def test_weights_saved_by_bitsandbytes_are_read(pair, saved_by_bitsandbytes):
    plain, loaded = saved_by_bitsandbytes, load_model(str(pair / "target"))
    ids = torch.randint(5, 65, (2, 9))
    with torch.no_grad():
        wanted, given = (model.logits(model.hidden_states(ids)).flatten() for model in (plain, loaded))
    assert torch.corrcoef(torch.stack([wanted, given]))[0, 1] > 0.85


@pytest.mark.parametrize("name", ["init-draft", "train-draft", "export"])
def test_weights_that_stay_quantised_are_not_cut_trained_or_exported(pair, saved_by_bitsandbytes, name, capsys):
    if name != "init-draft":
        (pair / "target").rename(pair / "small")
        (pair / "draft").rename(pair / "target")
        (pair / "small").rename(pair / "draft")
    assert main(command(pair, name)) == 2
    error = wild.one_line(capsys)
    assert "is quantised by bitsandbytes, and quantised weights can't be cut, trained or exported" in error
    assert f"--{'target' if name == 'init-draft' else 'draft'} " in error
    assert not list((pair / "out").rglob("*"))


def test_a_quantised_target_is_not_quantised_again(pair, capsys):
    wild.block_fp8(pair / "target")
    assert main([*command(pair, "train-draft"), "--target-memory", "nf4"]) == 2
    assert "is quantised already, by fp8; leave out --target-memory nf4" in wild.one_line(capsys)
