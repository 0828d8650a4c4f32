"""Checkpoints that lack something: adapters without their model, tokenizer files, packages, code, the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import wild_checkpoints as wild
from tiny_models import make_model, save

from specdistill.models import load_model, load_pair
from specdistill.models.checkpoint import save_draft, tokenizer_files


@pytest.fixture
def pair(tmp_path):
    """A target of three layers and a draft of one, which a test may damage."""
    save(make_model(layers=3), tmp_path / "target")
    save(make_model(layers=1, seed=9), tmp_path / "draft")
    return tmp_path


# ---- adapters


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("command", [*wild.COMMANDS, "check"])
@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_without_its_base_is_refused(pair, command, role, with_config, capsys):
    if role == "draft" and command in ("init-draft", "generate", "annotate"):
        return
    directory = wild.adapter(pair / "adapter")
    if with_config:
        (directory / "config.json").write_text((pair / role / "config.json").read_text())
    assert wild.run(command, pair, **{role: str(directory)}) == 2
    error = wild.one_line(capsys)
    assert f"can't read the base org/base-8b of --{role} {directory}" in error and "network access" in error
    assert ("or name it with --target-base)" in error) == (role == "target")
    assert not (pair / "out").exists()


# ---- files and packages that are missing


def test_missing_tokenizer_files_are_named(pair, capsys):
    for file in (pair / "target").glob("tokenizer*"):
        file.unlink()
    assert wild.run("generate", pair) == 2
    error = wild.one_line(capsys)
    assert "has no tokenizer files" in error and "network" not in error


def test_sentencepiece_is_asked_for_where_it_is_missing(pair, capsys, monkeypatch):
    (pair / "target/tokenizer.json").unlink()
    (pair / "target/tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    wild.change_json(pair / "target/tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert wild.run("generate", pair) == 2
    error = wild.one_line(capsys)
    assert "pip install sentencepiece" in error and "tiktoken" not in error


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_remote_code_is_never_asked_about(pair, file):
    """A terminal would be asked for a yes; here standard input is one that would answer it."""
    code = {"AutoConfig": "mine.MyConfig", "AutoTokenizer": ["mine.MyTokenizer", None]}
    changes = {"model_type": "mine"} if file == "config.json" else {"tokenizer_class": "MyTokenizer"}
    wild.change_json(pair / "target" / file, auto_map=code, **changes)
    (pair / "target/mine.py").write_text("raise SystemExit('this code ran')\n")
    command = [sys.executable, "-m", "specdistill", "generate", "--target", str(pair / "target"), "--output"]
    done = subprocess.run([*command, str(pair / "out")], input="y\ny\ny\n", capture_output=True, text=True, timeout=120)
    assert "this code ran" not in done.stderr + done.stdout and "Do you wish" not in done.stdout + done.stderr
    if done.returncode:
        assert done.returncode == 2 and "never run" in done.stderr and done.stderr.count("\n") == 1
    else:
        # The tokenizer's own file is enough without its code.
        assert file == "tokenizer_config.json"


def test_code_beside_a_gguf_file_is_never_asked_about(pair, gguf_path):
    """transformers reads the tokenizer's settings beside the file; it asked, and a yes ran the code."""
    wild.change_json(pair / "target/tokenizer_config.json", auto_map={"AutoTokenizer": ["mine.T", None]})
    wild.change_json(pair / "target/tokenizer_config.json", tokenizer_class="T")
    (pair / "target/mine.py").write_text("raise SystemExit('this code ran')\n")
    (pair / "target/m.gguf").symlink_to(gguf_path)
    command = [sys.executable, "-m", "specdistill", "generate", "--target", str(pair / "target/m.gguf"), "--output"]
    settings = os.environ | {"SPECDISTILL_CACHE": str(pair / "cache")}
    done = subprocess.run(
        [*command, str(pair / "out")], input="y\ny\ny\n", capture_output=True, text=True, timeout=120, env=settings
    )
    assert done.returncode == 2 and "this code ran" not in done.stderr + done.stdout
    assert "Do you wish" not in done.stderr + done.stdout and "unexpected" not in done.stderr


def test_only_hub_ids_are_told_about_the_network(pair, capsys):
    (pair / "target/tokenizer.json").write_text("{")
    assert wild.run("generate", pair) == 2 and "network" not in wild.one_line(capsys)
    assert wild.run("generate", pair, target="nobody/nothing") == 2 and "network access" in wild.one_line(capsys)


def test_a_broken_config_names_its_file(pair, capsys):
    (pair / "target/config.json").write_text("{")
    assert wild.run("generate", pair) == 2 and "target/config.json" in wild.one_line(capsys)


# ---- written drafts


def test_named_chat_templates_are_copied(pair):
    templates = pair / "target/additional_chat_templates"
    templates.mkdir()
    (templates / "tool_use.jinja").write_text("{{ tools }}")
    (pair / "target/chat_template.jinja").write_text("{{ messages }}")
    loaded = load_pair(str(pair / "target"), str(pair / "draft"))
    assert "additional_chat_templates/tool_use.jinja" in tokenizer_files(loaded.target)
    (pair / "saved").mkdir()
    save_draft(loaded.draft, loaded.target, pair / "saved")
    assert (pair / "saved/additional_chat_templates/tool_use.jinja").read_text() == "{{ tools }}"
    saved = load_model(str(pair / "saved"), "draft").tokenizer.chat_template
    assert saved == {"default": "{{ messages }}", "tool_use": "{{ tools }}"}


def test_optional_kernels_of_bitsandbytes_are_not_asked_for():
    """Its import says so on CPUs with AVX-512; the command that loads it is ours."""
    code = "import specdistill, logging; log = logging.getLogger('bitsandbytes.backends.cpu.ops')\n"
    code += (
        "import bitsandbytes\nlog.warning('Failed to load CPU gemm_4bit_forward from %s', 'x'); log.warning('other')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stderr and "other" in done.stderr


def test_an_error_of_training_comes_alone():
    """transformers' trainer, which is imported before any model is looked for, imports bitsandbytes."""
    command = [sys.executable, "-m", "specdistill", "train-draft", "--target", "./no", "--draft", "d", "--output", "o"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("specdistill: --target ./no does not")
    assert done.stderr.count("\n") == 1


def test_adapter_settings_that_are_broken_are_one_line(pair, capsys):
    directory = wild.adapter(pair / "adapter")
    (directory / "adapter_config.json").write_text(json.dumps([1]))
    assert wild.run("generate", pair, target=str(directory)) == 2 and "adapter_config.json" in wild.one_line(capsys)
