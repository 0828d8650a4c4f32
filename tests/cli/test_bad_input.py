"""Every mistake a user can make: one clear line, exit code 2 (130 for Ctrl-C), nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from tiny_models import make_model, make_tokenizer, save

from specdistill.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    save(make_model(layers=3), folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    save(make_model(layers=1, tokenizer=make_tokenizer(first_word="zebra")), folder / "foreign")
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "w1"}\n{"prompt": \n')
    (folder / "long.txt").write_text("w1 " * 300 + "\nw2\nw3\n")
    (folder / "fine.txt").write_text("w1 w2\nw3 w4\nw5 w6\nw7 w8\n")
    (folder / "used").mkdir()
    (folder / "used" / "precious").write_text("keep me")
    (folder / "report.json").write_text("old")
    return folder


TRAIN = ["train-draft", "--target", "target", "--draft", "draft", "--output", "out", "--prompts", "fine.txt"]
BENCH = ["bench", "--target", "target", "--draft", "draft", "--prompts", "fine.txt", "--max-new-tokens", "8"]
GENERATE = ["generate", "--target", "target", "--output", "out", "--prompts", "fine.txt"]
INIT = ["init-draft", "--target", "target", "--output", "out", "--layers", "1", "--prompts", "fine.txt"]


def changed(command, **flags):
    command = command.copy()
    for name, value in flags.items():
        flag = "--" + name.replace("_", "-")
        if flag in command:
            command[command.index(flag) + 1] = value
        else:
            command += [flag, value]
    return command


CASES = {
    "learning rate of NaN": (changed(TRAIN, learning_rate="nan"), "--learning-rate must be at least 0, got nan"),
    "gradient norm of NaN": (changed(TRAIN, max_grad_norm="nan"), "--max-grad-norm must be above 0, got nan"),
    "infinite temperature": (changed(GENERATE, temperature="inf"), "--temperature must be a finite number"),
    "missing target": (changed(BENCH, target="./nowhere"), "--target ./nowhere does not exist"),
    "missing gguf": (changed(TRAIN, target="no.gguf"), "--target no.gguf does not exist"),
    "missing draft": (changed(TRAIN, draft="./nowhere"), "--draft ./nowhere does not exist"),
    "missing compare": (changed(BENCH, compare="./nowhere"), "--compare ./nowhere does not exist"),
    "missing reference": (changed(TRAIN, reference="./nowhere"), "--reference ./nowhere does not exist"),
    "missing rollouts": (changed(TRAIN, rollouts="nowhere"), "--rollouts nowhere is no directory of rollouts"),
    "rollouts of something else": (changed(TRAIN, rollouts="used"), "used holds no rollouts"),
    "missing text": (changed(TRAIN, method="sft", text="no.txt"), "--text no.txt does not exist"),
    "no answers": (
        changed(TRAIN, method="sft"),
        'have no field "answer" (the first is fine.txt, line 2; the fields there are prompt), which sft needs',
    ),
    "missing reward": (changed(TRAIN, method="gkd", reward="nowhere:f"), "can't import nowhere"),
    "unknown scorer": (changed(TRAIN, method="best-of-n", scorer="magic"), "unknown --scorer 'magic'"),
    "unknown tracker": (changed(TRAIN, report_to="magic"), "--report-to magic"),
    "float16 on a cpu": (changed(TRAIN, precision="float16"), "--precision float16 needs a GPU"),
    "missing target in generate": (changed(GENERATE, target="./nowhere"), "--target ./nowhere does not exist"),
    "missing other": (changed(GENERATE, other="./nowhere"), "--other ./nowhere does not exist"),
    "other tokenizer in generate": (changed(GENERATE, other="foreign"), "id 5 is 'w0' in target"),
    "output of generate holds a run": (changed(GENERATE, output="used"), "used already holds files"),
    "missing prompts": (changed(TRAIN, prompts="none.jsonl"), "prompts file none.jsonl does not exist"),
    "empty prompts": (changed(TRAIN, prompts="empty.jsonl"), "empty.jsonl holds no prompts"),
    "empty prompts in bench": (changed(BENCH, prompts="empty.jsonl"), "empty.jsonl holds no prompts"),
    "broken line": (changed(TRAIN, prompts="broken.jsonl"), "broken.jsonl, line 2: not valid JSON"),
    "broken line in init": (changed(INIT, prompts="broken.jsonl"), "broken.jsonl, line 2: not valid JSON"),
    "unknown method": (changed(TRAIN, method="magic"), 'Choose from: "sft"'),
    "different tokenizers": (
        changed(TRAIN, draft="foreign"),
        "id 5 is 'w0' in target (65 tokens) and 'zebra' in foreign",
    ),
    "different tokenizers in bench": (changed(BENCH, draft="foreign"), "id 5 is 'w0' in target"),
    "different tokenizers in compare": (changed(BENCH, compare="foreign"), "id 5 is 'w0' in target"),
    "output holds a run": (changed(TRAIN, output="used"), "used already holds files; choose another --output"),
    "output of init holds a run": (changed(INIT, output="used"), "used already holds files"),
    "output is a file": (changed(TRAIN, output="fine.txt"), "fine.txt is a file"),
    "report exists": (changed(BENCH, json="report.json"), "report.json already exists; choose another --json"),
    "prompt longer than the context": (
        changed(BENCH, prompts="long.txt"),
        "prompt '1' has 302 tokens, but only 248 fit",
    ),
    "prompt longer than the context in training": (changed(TRAIN, prompts="long.txt"), "prompt '1' has 302 tokens"),
    "unknown flag": ([*BENCH, "--temprature", "1"], "Unknown option: --temprature. Did you mean --temperature?"),
    "unknown command": (["bnch"], 'Unknown command "bnch"'),
    "not a number": (changed(TRAIN, steps="many"), "--steps must be a whole number, got many"),
    "half a step": (changed(TRAIN, steps="1.5"), "--steps must be a whole number, got 1.5"),
    "half an optional number": (changed(TRAIN, top_k="2.5"), "--top-k must be a whole number, got 2.5"),
    "a hexadecimal": (changed(BENCH, max_draft_tokens="0x10"), "--max-draft-tokens must be a whole number, got 0x10"),
    "an underscore": (changed(INIT, layers="1_0"), "--layers must be a whole number, got 1_0"),
    "out of range": (changed(BENCH, top_p="2"), "--top-p must be in (0, 1]"),
    "missing flag": (["bench", "--target", "target"], "specdistill: --draft is required"),
    "flag without a value": ([*BENCH, "--json"], "--json requires an argument"),
    "draft without a value": (["bench", "--target", "target", "--draft"], "--draft requires an argument"),
    "no directory of that name": (changed(TRAIN, draft="nodir"), "--draft nodir: there is no directory of that name"),
    "too many layers": (changed(INIT, layers="3"), "--layers 3 must be below the target's 3 layers"),
    "bad device": (changed(BENCH, device="quantum"), "--device quantum can't be used"),
    "missing config": ([*BENCH, "--config", "no.yaml"], "can't read --config no.yaml"),
    "config without a name": ([*BENCH, "--config"], "--config needs a file name"),
}


@pytest.fixture
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_and_exit_code_two(name, in_folder, capsys):
    arguments, text = CASES[name]
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("specdistill: ") and text in lines[0], captured.err
    assert captured.out == ""
    assert (in_folder / "used" / "precious").read_text() == "keep me" and (
        in_folder / "report.json"
    ).read_text() == "old"
    assert not [path for path in in_folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("target: target\nnum_draft_tokns: 3\n", "num_draft_tokns"),
        ("- a\n", "holds a list in place of settings"),
        ("a: [1\n", "not valid YAML"),
        ("seed: 1.5\n", "--seed must be a whole number, got 1.5"),
        ("seed: 0x10\n", "--seed must be a whole number in plain digits, got 0x10"),
        ("target: target\nmax_new_tokens: 1_0\n", "got 1_0 (--config "),
        ("1: 2\n", "1 is no name of a setting"),
    ],
)
def test_bad_config_files(in_folder, tmp_path, capsys, content, text):
    (tmp_path / "c.yaml").write_text(content)
    assert main([*BENCH, "--config", str(tmp_path / "c.yaml")]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1 and text in error


def test_config_file_and_flags_make_one_config(in_folder, tmp_path, monkeypatch, capsys):
    (tmp_path / "c.yaml").write_text("target: target\ndraft: draft\nprompts: fine.txt\nmax_new_tokens: 5\nseed: 3\n")
    seen = []
    monkeypatch.setattr("specdistill.serving.bench.measure_draft", lambda config, *more: seen.append(config) or exit(9))
    with pytest.raises(SystemExit):
        main(["bench", "--config", str(tmp_path / "c.yaml"), "--seed", "7"])
    assert (seen[0].max_new_tokens, seen[0].timing.seed, seen[0].draft) == (5, 7, "draft")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_is_one_line_and_the_partial_output_is_removed(in_folder, tmp_path, capsys):
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(small)], capture_output=True).returncode:
        pytest.skip("this sandbox does not allow mounts; tests/distill covers a full disk by fault injection")
    try:
        assert main(changed(INIT, output=str(small / "out"), calibration_tokens="4")) == 2
        assert "disk full while writing" in capsys.readouterr().err
        assert not list((small / "out").glob("*.safetensors"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_output_that_cannot_be_written(in_folder, capsys, monkeypatch):
    # Root may write anywhere, so the refusal of the operating system is played.
    from pathlib import Path

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    for command, flags in (
        (TRAIN, {"output": "locked/out"}),
        (INIT, {"output": "locked/out"}),
        (BENCH, {"json": "locked/r.json"}),
    ):
        assert main(changed(command, **flags)) == 2
        error = capsys.readouterr().err
        assert "choose a folder that you may write to" in error and len(error.strip().splitlines()) == 1


def test_read_only_file_system(in_folder, capsys):
    assert main(changed(TRAIN, output="/proc/specdistill/out")) == 2
    error = capsys.readouterr().err
    assert "can't write /proc/specdistill/out" in error and len(error.strip().splitlines()) == 1


def test_unexpected_errors_are_one_line_too_unless_debug(in_folder, capsys, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("boom\nand more")

    monkeypatch.setattr("specdistill.serving.bench.measure_draft", broken)
    assert main(BENCH) == 2
    error = capsys.readouterr().err
    assert "unexpected RuntimeError: boom and more" in error and len(error.strip().splitlines()) == 1
    with pytest.raises(RuntimeError):
        main([*BENCH, "--debug"])


def test_ctrl_c_in_the_middle_of_training(in_folder, tmp_path):
    output = tmp_path / "out"
    command = changed(
        TRAIN, output=str(output), steps="100000", heldout_prompts="1", eval_every="5", patience="0", max_new_tokens="8"
    )
    # A shell starts background jobs with SIGINT ignored, and children inherit that: the test must not depend on it.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from specdistill.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (output / "model.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert ", a draft, the rollouts; the same command with --resume goes on after step " in error
    assert "Traceback" not in error
    from specdistill.models import load_model

    load_model(str(output), "draft")
    assert json.loads((output / "history.jsonl").read_text().splitlines()[-1])["step"] >= 5


def test_commands_end_to_end(in_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    cut, out = tmp_path / "cut", tmp_path / "out"
    assert main(changed(INIT, output=str(cut), layers="2", calibration_tokens="4")) == 0
    assert "layers" in capsys.readouterr().out
    train = changed(TRAIN, draft=str(cut), output=str(out), steps="4", eval_every="2", max_new_tokens="8")
    assert main(train) == 0
    assert "paired difference" in capsys.readouterr().out
    report = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html")]
    assert main([*changed(BENCH, draft=str(out), compare=str(cut), max_draft_tokens="2"), *report]) == 0
    shown = capsys.readouterr().out
    assert "verdict:" in shown and str(tmp_path / "r.html") in shown
    assert json.loads((tmp_path / "r.json").read_text())["compare"] and "<svg" in (tmp_path / "r.html").read_text()
