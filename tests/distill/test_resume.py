"""A run that was cut off goes on as if it had not been: kill -9 at any moment, then --resume."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import make_model, save

from specdistill import TrainConfig, train_draft
from specdistill.distill.training import checkpoints
from specdistill.distill.training import trainer as trainer_module
from specdistill.errors import ConfigError, OutputError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resuming")
    save(make_model(layers=3), folder / "target")
    # GPT-2 has dropout, whose stream must go on as well.
    draft = make_model("gpt2", layers=1, seed=9)
    draft.model.config.attn_pdrop = draft.model.config.resid_pdrop = 0.1
    save(draft, folder / "draft")
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}", "answer": f"w{(i + 1) % 60} w{(i + 2) % 60}"} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def config(files, output, **settings):
    defaults = {
        "prompts": str(files / "prompts.jsonl"),
        "heldout_prompts": 5,
        "rollouts_per_prompt": 2,
        "max_new_tokens": 12,
        "batch_size": 4,
        "steps": 24,
        "eval_every": 2,
        "patience": 0,
        "learning_rate": 3e-3,
    }
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "output": str(output)}
    return TrainConfig.flat(**(given | defaults | settings))


def history(output):
    return (output / "history.jsonl").read_text()


def same_end(one, other):
    assert history(one) == history(other)
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert weights.keys() == wanted.keys() and all(torch.equal(weights[name], wanted[name]) for name in wanted)


METHODS = {
    "gkd": {"method": "gkd"},
    "distillspec": {"method": "distillspec", "target_fraction": 0.5, "micro_batch_size": 3},
    "skd": {"method": "skd"},
    "lora": {"method": "distillspec", "target_fraction": 1.0, "lora_rank": 2},
    "best-of-n": {"method": "best-of-n"},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_on_bit_for_bit(files, tmp_path, monkeypatch, name):
    settings = METHODS[name]
    train_draft(config(files, tmp_path / "whole", **settings))
    original = trainer_module.DraftTrainer._one_step
    cuts = iter([5, 13, 22])
    cut = next(cuts)

    def breaking(self, sequences):
        # An error that nothing expects: no clean-up that a kill would not get either may be needed.
        if self.step == cut:
            raise ZeroDivisionError
        return original(self, sequences)

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", breaking)
    broken = config(files, tmp_path / "cut", resume=True, **settings)
    for after in (13, 22, 99):
        with pytest.raises(ZeroDivisionError):
            train_draft(broken)
        cut = after
    train_draft(broken)
    same_end(tmp_path / "cut", tmp_path / "whole")
    assert not (tmp_path / "cut" / "checkpoints").exists()


def start(files, output, **settings):
    (files / "run.yaml").write_text(
        yaml.safe_dump(dataclasses.asdict(config(files, output, resume=True, **settings)) | {"report_to": []})
    )
    code = "from specdistill.cli import main; raise SystemExit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train-draft", "--config", str(files / "run.yaml")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
    )


def test_killed_at_ten_moments_the_run_ends_as_if_it_had_not_been(files, tmp_path):
    """Ten kills -9: while models load, rollouts are sampled, checkpoints are written, wherever they fall."""
    settings = {"method": "gkd", "steps": 40, "eval_every": 1}
    train_draft(config(files, tmp_path / "whole", **settings))
    output = tmp_path / "killed"
    moments = random.Random(0)
    while_writing = 0
    for number in range(10):
        process = start(files, output, **settings)
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
    process = start(files, output, **settings)
    assert process.wait() == 0, process.stderr.read()
    same_end(output, tmp_path / "whole")
    assert while_writing >= 1, "no kill fell into the writing of a checkpoint"


def test_the_two_newest_checkpoints_are_kept_and_a_damaged_one_is_named(files, tmp_path, monkeypatch):
    original = trainer_module.DraftTrainer._one_step

    def breaking(self, sequences):
        if self.step == 9:
            raise ZeroDivisionError
        return original(self, sequences)

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", breaking)
    run = config(files, tmp_path / "out", resume=True)
    with pytest.raises(ZeroDivisionError):
        train_draft(run)
    folders = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert folders == ["step-000006", "step-000008"]
    (tmp_path / "out" / "checkpoints" / "step-000008" / "network.safetensors").write_bytes(b"torn")
    with pytest.raises(OutputError, match="step-000008 can't be used"):
        train_draft(run)


def test_full_disk_while_a_checkpoint_is_written_keeps_the_one_before(files, tmp_path, monkeypatch):
    original = checkpoints.save_file
    calls = iter(range(1000))

    def full(tensors, path):
        if next(calls) == 9:
            raise OSError(28, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", full)
    run = config(files, tmp_path / "out", resume=True)
    with pytest.raises(OutputError, match="disk full"):
        train_draft(run)
    assert [path.name for path in sorted((tmp_path / "out" / "checkpoints").iterdir())] == [
        "step-000002",
        "step-000004",
    ]
    monkeypatch.setattr(checkpoints, "save_file", original)
    train_draft(run)
    train_draft(config(files, tmp_path / "whole"))
    same_end(tmp_path / "out", tmp_path / "whole")


def test_what_can_not_be_resumed_is_refused(files, tmp_path, monkeypatch):
    train_draft(config(files, tmp_path / "done", steps=4))
    with pytest.raises(OutputError, match="has ended"):
        train_draft(config(files, tmp_path / "done", steps=4, resume=True))
    original = trainer_module.DraftTrainer._one_step

    def breaking(self, sequences):
        if self.step == 5:
            raise ZeroDivisionError
        return original(self, sequences)

    monkeypatch.setattr(trainer_module.DraftTrainer, "_one_step", breaking)
    with pytest.raises(ZeroDivisionError):
        train_draft(config(files, tmp_path / "cut"))
    with pytest.raises(OutputError, match="has another --learning-rate, --seed"):
        train_draft(config(files, tmp_path / "cut", resume=True, seed=1, learning_rate=1e-3))
    with pytest.raises(OutputError, match="already holds files"):
        train_draft(config(files, tmp_path / "cut"))
    with pytest.raises(ConfigError, match="must be a multiple of --eval-every"):
        config(files, tmp_path / "x", checkpoint_every=3)
