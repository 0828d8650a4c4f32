"""A run that was cut off goes on as if it had not been: kill -9 at any moment, then --resume."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from tiny_models import make_model
from tiny_runs import before_each_step, prompt_rows, same_weights, train_config, write_folder

from specdistill import train_draft
from specdistill.distill.training import checkpoints
from specdistill.errors import ConfigError, OutputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 draft: it has dropout, whose stream must go on as well."""
    draft = make_model("gpt2", layers=1, seed=9)
    draft.model.config.attn_pdrop = draft.model.config.resid_pdrop = 0.1
    models = {"target": make_model(layers=3), "draft": draft}
    return write_folder(tmp_path_factory.mktemp("resuming"), models, prompt_rows(20))


def config(folder, output, **settings):
    """Twenty-four steps with a checkpoint every second one."""
    every = {"heldout_prompts": 5, "batch_size": 4, "steps": 24, "eval_every": 2, "patience": 0}
    return train_config(folder, output, **(every | settings))


def same_end(one, other):
    assert (one / "history.jsonl").read_text() == (other / "history.jsonl").read_text()
    assert same_weights(one, other)


def break_at(monkeypatch, step):
    """An error that nothing expects: no clean-up that a kill would not get either may be needed."""

    def breaking(done, examples):
        if done == step:
            raise ZeroDivisionError

    before_each_step(monkeypatch, breaking)


METHODS = {
    "gkd": {"method": "gkd"},
    "distillspec": {"method": "distillspec", "target_fraction": 0.5, "micro_batch_size": 3},
    "skd": {"method": "skd"},
    "lora": {"method": "distillspec", "target_fraction": 1.0, "lora_rank": 2},
    "best-of-n": {"method": "best-of-n"},
    "watched score, last kept": {"method": "sft", "scorer": "exact-match", "watch": "score", "keep": "last"},
    "watched reward": {"method": "gkd", "reward": "tiny_runs:count_w7"},
    "watched loss": {"method": "gkd", "watch": "loss", "patience": 9},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_bit_for_bit(folder, tmp_path, monkeypatch, name):
    settings = METHODS[name]
    train_draft(config(folder, tmp_path / "uncut", **settings))
    broken = config(folder, tmp_path / "cut", resume=True, **settings)
    for step in (5, 13, 22):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            break_at(patch, step)
            train_draft(broken)
    train_draft(broken)
    same_end(tmp_path / "cut", tmp_path / "uncut")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def start_process(folder, output, **settings):
    (folder / "run.yaml").write_text(yaml.safe_dump(config(folder, output, resume=True, **settings).to_flat()))
    code = "from specdistill.cli import main; raise SystemExit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train-draft", "--config", str(folder / "run.yaml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )


def test_killed_at_ten_moments_the_run_ends_as_if_it_had_not_been(folder, tmp_path):
    """Ten kills -9: while models load, rollouts are sampled, checkpoints are written, wherever they fall."""
    settings = {"method": "gkd", "steps": 40, "eval_every": 1}
    train_draft(config(folder, tmp_path / "uncut", **settings))
    output = tmp_path / "killed"
    moments = random.Random(0)
    while_writing = 0
    for number in range(10):
        process = start_process(folder, output, **settings)
        seen = len(list((output / "checkpoints").glob("step-*")))
        newest = max((output / "checkpoints").glob("step-*"), default=None)
        deadline = time.monotonic() + 60
        # Half of them as soon as a new checkpoint is being written, the others some time after one was.
        while process.poll() is None and time.monotonic() < deadline:
            writing = list((output / "checkpoints").glob(".step-*"))
            moved = max((output / "checkpoints").glob("step-*"), default=None) != newest
            if number % 2 == 0 and writing and (moved or seen == 0):
                break
            if number % 2 == 1 and moved:
                time.sleep(moments.uniform(0, 0.1))
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        while_writing += bool(list((output / "checkpoints").glob(".step-*")))
        if process.returncode == 0:
            break
    process = start_process(folder, output, **settings)
    assert process.wait() == 0, process.stderr.read()
    same_end(output, tmp_path / "uncut")
    assert while_writing >= 1, "no kill fell into the writing of a checkpoint"


def test_the_two_newest_checkpoints_are_kept_and_a_damaged_one_is_named(folder, tmp_path, monkeypatch):
    break_at(monkeypatch, 9)
    settings = config(folder, tmp_path / "out", resume=True)
    with pytest.raises(ZeroDivisionError):
        train_draft(settings)
    folders = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["step-000006", "step-000008"]
    (tmp_path / "out" / "checkpoints" / "step-000008" / "network.safetensors").write_bytes(b"torn")
    with pytest.raises(OutputError, match="step-000008 can't be used"):
        train_draft(settings)


def test_checkpoint_every_says_how_often_one_is_written(folder, tmp_path, monkeypatch):
    break_at(monkeypatch, 9)
    with pytest.raises(ZeroDivisionError):
        train_draft(config(folder, tmp_path / "out", checkpoint_every=4))
    folders = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["step-000004", "step-000008"]


def test_full_disk_while_a_checkpoint_is_written_keeps_the_one_before(folder, tmp_path, monkeypatch):
    original = checkpoints.save_file
    calls = iter(range(1000))

    def full(tensors, path):
        if next(calls) == 9:
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    settings = config(folder, tmp_path / "out", resume=True)
    with pytest.raises(OutputError, match="disk full"):
        train_draft(settings)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").iterdir())] == [
        "step-000002",
        "step-000004",
    ]
    monkeypatch.setattr(checkpoints, "save_file", original)
    train_draft(settings)
    train_draft(config(folder, tmp_path / "uncut"))
    same_end(tmp_path / "out", tmp_path / "uncut")


def test_what_can_not_be_resumed_is_refused(folder, tmp_path, monkeypatch):
    train_draft(config(folder, tmp_path / "done", steps=4))
    with pytest.raises(OutputError, match="has ended"):
        train_draft(config(folder, tmp_path / "done", steps=4, resume=True))
    break_at(monkeypatch, 5)
    with pytest.raises(ZeroDivisionError):
        train_draft(config(folder, tmp_path / "cut"))
    with pytest.raises(OutputError, match="has another --learning-rate, --seed"):
        train_draft(config(folder, tmp_path / "cut", resume=True, seed=1, learning_rate=1e-3))
    with pytest.raises(OutputError, match="already holds files; the run in it did not end: add --resume to go on"):
        train_draft(config(folder, tmp_path / "cut"))
    with pytest.raises(OutputError, match="already holds files; choose another --output, or move the old"):
        train_draft(config(folder, tmp_path / "done", steps=4))
    # An exported draft takes its run's settings along, and is no run.
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "specdistill.yaml").write_text((tmp_path / "cut" / "specdistill.yaml").read_text())
    with pytest.raises(OutputError, match="already holds files; choose another --output, or move the old"):
        train_draft(config(folder, tmp_path / "exported"))
    with pytest.raises(ConfigError, match="must be a multiple of --eval-every"):
        config(folder, tmp_path / "x", checkpoint_every=3)
