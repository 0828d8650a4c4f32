"""The README says what is true: its commands exist, its Python runs, its tables are the committed results."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_models import make_model, save

from specdistill.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_tables_are_the_committed_results():
    done = subprocess.run(
        [sys.executable, "benchmarks/tables/readme_tables.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_readme_parses():
    text = "\n".join(code_blocks("bash") + code_blocks("")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("specdistill ")]
    assert {command[1] for command in commands} == {"init-draft", "generate", "train-draft", "bench", "export", "plan"}
    for command in commands:
        app.parse_args(command[1:], exit_on_error=False, print_error=False)


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save(make_model(layers=3), tmp_path / "big")
    save(make_model(layers=1, seed=4), tmp_path / "small")
    (example,) = [block for block in code_blocks("python") if "TrainConfig" in block]
    # The example's models are real ones; here they are tiny, and so are the settings.
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": f"w{i}"}) + "\n" for i in range(6)))
    small = 'prompts="p.jsonl", max_new_tokens=8'
    code = example.replace("TrainConfig.flat(", f"TrainConfig.flat({small}, heldout_prompts=2, steps=2, ")
    code = code.replace("BenchConfig.flat(", f"BenchConfig.flat({small}, ")
    exec(compile(code, "README.md", "exec"), {})
    (decoding,) = [block for block in code_blocks("python") if "SpeculativeDecoder" in block]
    exec(compile(decoding, "README.md", "exec"), {})
    reasons = [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]]
    assert len(reasons) == 2 and set(reasons) <= {"length", "eos", "stop"}


@pytest.mark.parametrize("target", ["demo", "demo-hard", "test", "setup", "check", "test-fast", "gpu", "gpu DRY=1"])
def test_make_targets_exist(target):
    done = subprocess.run(["make", "--dry-run", *target.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
