"""`make demo`: its adapter is small and right, its steps run, and its four lines say what the report says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model, save

ROOT = Path(__file__).parents[1]
ADAPTER = ROOT / "examples/mail_adapter"


@pytest.fixture
def studies(monkeypatch):
    """The studies' modules, importable for one test; its value imports one by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    # A script puts the repository on the path; other tests must not find it there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    from importlib import import_module

    yield lambda name: import_module(f"benchmarks.studies.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_the_adapter_is_small_and_says_how_good_it_is():
    weights = load_file(ADAPTER / "adapter_model.safetensors")
    assert (ADAPTER / "adapter_model.safetensors").stat().st_size < 3_000_000
    # Rank 4 on seven linear layers in each of 30.
    assert len(weights) == 2 * 7 * 30 and {min(weight.shape) for weight in weights.values()} == {4}
    assert {weight.dtype for weight in weights.values()} == {torch.float16}
    card = (ADAPTER / "README.md").read_text()
    assert "| right on 64 other mails (seed 4), greedy | 97% of the objects" in card


@pytest.mark.smollm2
def test_the_adapter_turns_new_mails_into_their_json(smollm2, studies):
    """Without it SmolLM2 writes no object at all: 0 of 64 in the study."""
    from specdistill.data.prompts import Prompt, encode
    from specdistill.decoding import Sampling, generate_plain
    from specdistill.models import load

    target = load.load_model(load.find(str(ADAPTER), "target", base=str(smollm2.directory)))
    mails = studies("service_mail").records(2, seed=3)
    prompts = [Prompt(mail["id"], ({"role": "user", "content": mail["prompt"]},)) for mail in mails]
    encoded = [encode(prompt, target.tokenizer) for prompt in prompts]
    written = generate_plain(target, encoded, sampling=Sampling(temperature=0.0), max_new_tokens=160, seeds=[0, 1])
    assert [json.loads(target.decode(answer.token_ids)) for answer in written] == [
        json.loads(mail["answer"]) for mail in mails
    ]


def test_an_adapter_is_what_a_run_with_lora_changed(tmp_path, studies):
    """Also where one factor is far larger than the other, as trained ones are."""
    from specdistill.models import load

    base = make_model(layers=2)
    save(base, tmp_path / "base")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in base.model.named_parameters():
            if name.endswith(("q_proj.weight", "down_proj.weight")):
                weight += 10 * torch.randn(weight.shape[0], 2) @ (0.01 * torch.randn(2, weight.shape[1]))
    save(base, tmp_path / "tuned")
    studies("adapter_files").save_factors(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", 2, "nowhere")
    adapted = load.load_model(load.find(str(tmp_path / "adapter"), "target", base=str(tmp_path / "base")))
    for name, weight in base.model.named_parameters():
        assert torch.allclose(adapted.model.get_parameter(name), weight, atol=2e-3), name
    assert len(load_file(tmp_path / "adapter/adapter_model.safetensors")) == 2 * 2 * 2


def test_the_steps_run_and_every_line_is_the_reports(tmp_path, monkeypatch, studies, capsys):
    parts = studies("demo_parts")
    save(make_model(layers=3), tmp_path / "target")
    size = parts.DemoSize(
        layers=1, vocab_keep=16, mails=24, heldout=8, steps=2, batch_size=2, heldout_in_training=2,
        calibration_prompts=2, max_new_tokens=12, timed=6,
    )  # fmt: skip
    report = parts.run_demo(["--target", str(tmp_path / "target")], tmp_path / "demo", size)
    printed = capsys.readouterr().out
    commands = [line.split()[2] for line in printed.splitlines() if line.startswith("$ specdistill ")]
    assert commands == ["init-draft", "train-draft", "bench"] and printed.count("\nnext: ") == 3
    assert [line[:4] for line in printed.splitlines() if line[1:2] == "/"] == ["1/3:", "2/3:", "3/3:"]
    assert report.content["draft"]["head_size"] == 16 and report.content["setup"]["latency_prompts"] == 6
    assert report.content["setup"]["prompt_source"] == str(tmp_path / "demo/heldout.jsonl")
    trained = {json.loads(line)["prompt"] for line in (tmp_path / "demo/mails.jsonl").read_text().splitlines()}
    new = {json.loads(line)["prompt"] for line in (tmp_path / "demo/heldout.jsonl").read_text().splitlines()}
    assert len(trained) == 24 and len(new) == 8 and not trained & new
    assert (tmp_path / "demo/report.html").read_text().startswith("<!doctype html>")
    done, gained, copied, yours = parts.demo_lines(report, size)
    speed = report.speedup
    shown = f"{speed['mean']:.2f}x [{speed['ci95'][0]:.2f}, {speed['ci95'][1]:.2f}]"
    assert "a draft of 1 layers of the target, with a head of 16 ids, learned from 4 answers" in done
    assert f"{shown} as fast as the target alone" in gained and gained.endswith(report.verdict)
    timed = [name for name, entry in report.content["baselines"].items() if "speedup" in entry]
    assert timed and all(f"{name} " in copied for name in timed)
    assert copied.endswith(f"Fastest here: {report.content['recommendation']['serve']}")
    assert "specdistill init-draft --target YOUR_MODEL --layers 1 --vocab-keep 16 --prompts YOUR_PROMPTS.jsonl" in yours


def test_output_that_differs_is_not_called_the_same(studies):
    parts = studies("demo_parts")
    number = {"mean": 1.5, "ci95": [1.25, 1.75]}
    content = {
        "draft": {"head_size": 8192},
        "setup": {"predicting_rule": "greedy"}, "acceptance": {"alpha": {"greedy": {"mean": 0.815}}},
        "latency": {"speedup": number}, "economics": {"verdict": "pays"}, "lossless": {"greedy_identical": False},
        "baselines": {"ngram": {"predicted_speedup": 1.125}, "suffix": {"speedup": number}, "other": {}},
        "recommendation": {"serve": "draft"},
    }  # fmt: skip
    done, gained, copied, _ = parts.demo_lines(parts.BenchReport(content), parts.DEMO_SIZE)
    assert "with a head of 8,192 ids" in done and "keeps 82% of its tokens" in done
    assert gained.endswith("1.50x [1.25, 1.75] as fast as the target alone, on new mails, and the output differs, "
                           "see the report: pays")  # fmt: skip
    assert copied.endswith(
        "copying from the text needs no draft: ngram 1.12x (predicted); suffix 1.50x [1.25, 1.75]. Fastest here: draft"
    )


@pytest.mark.parametrize(("display", "opened"), [(None, False), (":0", True)])
def test_the_page_is_opened_only_in_front_of_a_screen(studies, tmp_path, monkeypatch, display, opened):
    """In a terminal the standard library would start a text browser."""
    demo, pages = studies("demo"), []
    monkeypatch.setattr(demo.sys, "platform", "linux")
    monkeypatch.setattr(demo.webbrowser, "open", lambda page: pages.append(page) or True)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    assert demo.open_page(tmp_path / "report.html") is opened
    assert pages == ([(tmp_path / "report.html").as_uri()] if opened else [])
