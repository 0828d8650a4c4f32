"""The examples run, and what they write is the target's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

from tiny_models import make_model, perturbed, save
from transformers import AutoModelForCausalLM

from specdistill.decoding import Sampling, generate_plain

ROOT = Path(__file__).parents[1]


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_plain_transformers_loop(tmp_path):
    target, prompt = make_model(layers=3), [3, 7, 8, 9, 4]
    save(target, tmp_path / "target")
    save(perturbed(target, 0.02), tmp_path / "draft")
    models = [AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("target", "draft")]
    generate = example("verify_in_transformers").generate
    (plain,) = generate_plain(target, [prompt], sampling=Sampling(temperature=0.0), max_new_tokens=40, seeds=[0])
    answer, calls = generate(*models, prompt, tokens=40)
    assert answer == plain.token_ids
    assert calls < len(answer)
    # A draft that is its target is never rejected, whatever the temperature.
    answer, calls = generate(models[0], models[0].__class__(models[0].config).eval(), prompt, tokens=20)
    assert answer == plain.token_ids[:20]
    twin = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    answer, calls = generate(models[0], twin, prompt, tokens=40, temperature=1.0, seed=5)
    assert calls == -(-len(answer) // 5)


def test_the_loops_command_line(tmp_path):
    save(make_model(layers=2), tmp_path / "target")
    save(make_model(layers=1, seed=3), tmp_path / "draft")
    command = [sys.executable, "examples/verify_in_transformers.py", str(tmp_path / "target"), str(tmp_path / "draft")]
    done = subprocess.run([*command, "w1 w2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "target calls" in done.stdout
