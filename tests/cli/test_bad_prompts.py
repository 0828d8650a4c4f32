"""Prompts that can't be used: every command says so in one line, reads no weights and writes nothing."""

from __future__ import annotations

import json

import pytest
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import write_rows

from specdistill.cli import main
from specdistill.models import load

USER, ASSISTANT = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m.content }} {% endfor %}"
)
COMMANDS = {
    "train-draft": ["--draft", "draft", "--output", "out", "--max-new-tokens", "8"],
    "bench": ["--draft", "draft", "--max-new-tokens", "8", "--json", "out"],
    "bench transformers": ["--draft", "draft", "--max-new-tokens", "8", "--json", "out", "--engine", "transformers"],
    "generate": ["--output", "out", "--max-new-tokens", "8"],
    "generate --other": ["--other", "draft", "--output", "out", "--max-new-tokens", "8"],
    "annotate": ["--output", "out", "--max-new-tokens", "8"],
    "init-draft": ["--layers", "1", "--output", "out"],
}
LONG = {"prompt": "w1 " * 300, "answer": "w2"}
CASES = {
    "assistant alone": ({"messages": [ASSISTANT]}, "p.jsonl, line 2: holds the assistant's turn alone"),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image", "image": "x"}]}]},
        "p.jsonl, line 2: turn 1: content is a list: images are not supported",
    ),
    "half a pair": ({"prompt": "\ud800"}, "p.jsonl, line 2: \\ud800 is half a surrogate pair"),
    "repeated id": ({"id": "1", "prompt": "w9"}, "p.jsonl, line 2: the id '1' occurs more than once"),
    "system refused": (
        {"messages": [{"role": "system", "content": "w2"}, USER, ASSISTANT]},
        "p.jsonl, line 2: the chat template of ",
    ),
    "too long": (LONG, "prompt '2' has 300 tokens"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompts")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    for name, layers in (("target", 3), ("draft", 1)):
        save(make_model(layers=layers, tokenizer=tokenizer), folder / name)
    return folder


def refused(folder, monkeypatch, capsys, command, prompts) -> str:
    """Runs a command that must refuse its prompts; the line that it says."""
    monkeypatch.chdir(folder)

    def no_weights(*arguments, **settings):
        raise AssertionError("weights were read")

    monkeypatch.setattr(load.AutoModelForCausalLM, "from_pretrained", no_weights)
    name = command.partition(" ")[0]
    assert main([name, "--target", "target", "--prompts", str(prompts), *COMMANDS[command]]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.strip().split("\n")
    assert "unexpected" not in line.lower() and captured.out == ""
    assert not (folder / "out").exists()
    return line


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_prompt_is_one_line_before_any_weights_are_read(folder, tmp_path, monkeypatch, capsys, command, case):
    row, text = CASES[case]
    rows = [{"messages": [USER, ASSISTANT]}, {"answer": "w3"} | row, {"prompt": "w4", "answer": "w5"}]
    write_rows(tmp_path / "p.jsonl", rows)
    assert text in refused(folder, monkeypatch, capsys, command, tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ({"rag": "w1", "tool_use": "w2"}, "has the chat templates rag, tool_use but no default"),
        ("w1\n{% if %}", "its chat template is no valid Jinja, line 2"),
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_template_is_one_line_before_any_weights_are_read(
    folder, tmp_path, monkeypatch, capsys, command, template, text
):
    write_rows(tmp_path / "p.jsonl", [{"messages": [USER, ASSISTANT]}, {"prompt": "w4", "answer": "w5"}])
    original = load.AutoTokenizer.from_pretrained

    def broken(*arguments, **settings):
        tokenizer = original(*arguments, **settings)
        tokenizer.chat_template = template
        return tokenizer

    monkeypatch.setattr(load.AutoTokenizer, "from_pretrained", broken)
    assert text in refused(folder, monkeypatch, capsys, command, tmp_path / "p.jsonl")


def test_the_template_of_a_draft_of_another_tokenizer_refuses_before_any_weights_are_read(
    tmp_path, monkeypatch, capsys
):
    """It reads the target's answers in its own template: after all of them had been written."""
    foreign = make_tokenizer(50, "other")
    foreign.chat_template = NO_SYSTEM
    save(make_model(layers=2), tmp_path / "target")
    save(make_model(layers=1, tokenizer=foreign, vocab_size=55), tmp_path / "draft")
    monkeypatch.setitem(COMMANDS, "train-draft", [*COMMANDS["train-draft"], "--method", "seqkd"])
    row, text = CASES["system refused"]
    write_rows(tmp_path / "p.jsonl", [{"messages": [USER]}, row, {"prompt": "w4"}])
    capsys.readouterr()
    assert text in refused(tmp_path, monkeypatch, capsys, "train-draft", tmp_path / "p.jsonl")
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}, {"prompt": "w1 " * 250}, {"prompt": "w4"}])
    (tmp_path / "draft" / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} w1 {% endfor %}")
    line = refused(tmp_path, monkeypatch, capsys, "train-draft", tmp_path / "p.jsonl")
    assert "prompt '2' has " in line


def test_a_parquet_file_of_chats_is_trained_on(folder, tmp_path, monkeypatch, capsys):
    import datasets

    monkeypatch.chdir(folder)
    rows = [{"messages": [{"role": "user", "content": f"w{i}"}, ASSISTANT]} for i in range(8)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "p.parquet"))
    command = ["train-draft", "--target", "target", "--draft", "draft", "--method", "sft", "--max-new-tokens", "8"]
    command += ["--steps", "2", "--eval-every", "2", "--heldout-prompts", "2", "--output", str(tmp_path / "out")]
    assert main([*command, "--prompts", str(tmp_path / "p.parquet")]) == 0, capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["training_prompts"] == 6
