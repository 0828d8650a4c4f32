"""The README says what is true: its commands exist, its Python runs, its tables are the committed results."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from pages import broken_links, mean_words_per_sentence
from tiny_models import make_model, save

from specdistill.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README.split("\n## ")[0]
TERMS = (
    "alpha",
    "tau",
    "rollout",
    "divergence",
    "on-policy",
    "distil ",
    "logits",
    "argmax",
    "LoRA",
    "MTP",
    "EAGLE",
    "gguf",
)
"""Words that the first screen would have to explain."""


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("script", ["readme_tables", "study_plots", "known_results"])
def test_tables_and_plots_are_the_committed_results(script):
    done = subprocess.run(
        [sys.executable, f"benchmarks/tables/{script}.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_it_is_short_and_in_plain_words():
    assert len(README.splitlines()) <= 160
    assert mean_words_per_sentence(README) < 18
    assert not [term for term in TERMS if term in FIRST_SCREEN]
    for term in ("*speculative decoding*", "*draft*", "*target*"):
        assert term in FIRST_SCREEN, "explained where it first stands"


def test_every_link_leads_somewhere():
    assert broken_links(ROOT / "README.md") == []


def test_every_command_in_the_readme_parses():
    text = "\n".join(code_blocks("bash") + code_blocks("")).replace("\\\n", " ")
    inline = re.findall(r"`(specdistill [^`]+)`", README)
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("specdistill ")]
    commands += [shlex.split(line) for line in inline]
    assert [command[1] for command in commands] == ["init-draft", "train-draft", "bench", "check", "plan"]
    for command in commands:
        app.parse_args(command[1:], exit_on_error=False, print_error=False)


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(make_model(layers=3), tmp_path / "big")
    save(make_model(layers=1, seed=4), tmp_path / "small")
    (example,) = code_blocks("python")
    # The example's models are real ones; here they are tiny, and so are the settings.
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in range(6)))
    small = 'prompts="p.jsonl", max_new_tokens=8'
    code = example.replace("TrainConfig.flat(", f"TrainConfig.flat({small}, heldout_prompts=2, steps=2, ")
    code = code.replace("BenchConfig.flat(", f"BenchConfig.flat({small}, ")
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines()[-1].split()[0] in ("pays", "does", "cannot", "undecided")


def test_make_targets_exist():
    named = set(re.findall(r"`make ([\w-]+(?: DRY=1)?)", README)) | {"setup", "check", "test-fast", "gpu", "gpu DRY=1"}
    for target in named:
        done = subprocess.run(["make", "--dry-run", *target.split()], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
