"""Two processes under `accelerate launch` (gloo) train the same draft as one: same loss and gradient, no deadlock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model
from tiny_runs import history, train_settings, write_folder

from specdistill import GenerateConfig, TrainConfig, generate, train_draft
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.pool import EpochSampler, PromptSampler
from specdistill.errors import ConfigError
from specdistill.models.pair import resolve_dtype


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Answers of one to six words, so that ranks get unequal shares."""
    return models_with_heads_of(65, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """Heads with a row that no token has: a parallel draft needs one."""
    return models_with_heads_of(66, tmp_path_factory.mktemp("padded"))


def models_with_heads_of(rows, place):
    models = {"target": make_model(layers=2, vocab_size=rows), "draft": make_model(layers=1, seed=9, vocab_size=rows)}
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}", "answer": " ".join(["w3"] * (1 + i % 6))} for i in range(20)]
    return write_folder(place, models, prompts)


def settings(folder, output, **changes):
    few = {"heldout_prompts": 4, "max_new_tokens": 10, "batch_size": 4, "steps": 6, "eval_every": 3, "patience": 0}
    return train_settings(folder, output, **(few | {"learning_rate": 1e-3, "device": "cpu"} | changes))


def command(arguments, processes=2, launcher=()):
    flags = []
    for name, value in arguments.items():
        flag = f"--{name.replace('_', '-')}"
        flags += [flag] if value is True else [flag, str(value)]
    # --multi_gpu is accelerate's word for several processes started by torch; its --cpu would start a single one.
    start = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    start += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return [*start, *(launcher or ["--multi_gpu"]), "-m", "specdistill", "train-draft", *flags]


def launch(arguments, environment=None, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (environment or {})
    return subprocess.run(command(arguments, **options), capture_output=True, text=True, timeout=300, env=environment)


CASES = {
    "gkd-accumulated": {"method": "gkd", "batch_size": 7, "micro_batch_size": 2},
    "gkd-reward": {
        "method": "gkd",
        "lmbda": 1.0,
        "batch_size": 5,
        "micro_batch_size": 2,
        "reward": "tiny_runs:count_w7",
    },
    "skd": {"method": "skd", "steps": 3},
    "a-rank-without-tokens": {"method": "supervised-kd", "batch_size": 1},
    "parallel-accumulated": {"method": "gkd", "batch_size": 7, "micro_batch_size": 2, "parallel": 3},
}
SHARDED = {
    "draft-gkd-accumulated": CASES["gkd-accumulated"] | {"shard": "draft"},
    "draft-skd-checkpointed": CASES["skd"] | {"shard": "draft", "gradient_checkpointing": True},
    "draft-a-rank-without-tokens": CASES["a-rank-without-tokens"] | {"shard": "draft"},
    "draft-parallel": {"method": "gkd", "parallel": 3, "anchors": "rounds", "parallel_weights": 0.7, "shard": "draft"},
    "both-without-tokens": CASES["a-rank-without-tokens"] | {"shard": "both"},
    "target-own-answers": {"method": "gkd", "lmbda": 0.7, "micro_batch_size": 1, "shard": "target", "rollouts": True},
}


@pytest.mark.parametrize("name", [*CASES, *SHARDED])
def test_two_ranks_train_as_one(folder, padded, tmp_path, name):
    folder = padded if "parallel" in name else folder
    one, two = (settings(folder, tmp_path / output, **(CASES | SHARDED)[name]) for output in ("one", "two"))
    if two.pop("rollouts", None):
        generate(GenerateConfig.flat(target=two["target"], prompts=two["prompts"], output=str(tmp_path / "answers")))
        two["rollouts"] = one["rollouts"] = str(tmp_path / "answers")
    train_draft(TrainConfig.flat(**(one | {"shard": "none"})))
    # Rewards are functions of tests.
    done = launch(two, {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr[-3000:]
    compare(folder, tmp_path)


def compare(folder, tmp_path):
    """Whether the runs `one`, of one process, and `two`, of two, are the same."""
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    single, double = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(single) == len(double)
    for wanted, got in zip(single, double, strict=True):
        for key in ("loss", "grad_norm", "alpha", "tokens_seen", "reward", "heldout_alpha_sampled"):
            if key in wanted:
                assert got[key] == pytest.approx(wanted[key], rel=1e-4), key
    # Adam divides by the gradient's own size: where that is rounding, so is the step. The updates as a whole agree.
    start, weights, others = (
        torch.cat([tensor.reshape(-1) for _, tensor in sorted(load_file(saved / "model.safetensors").items())])
        for saved in (folder / "draft", tmp_path / "one", tmp_path / "two")
    )
    assert float((weights - others).norm() / (weights - start).norm()) < 0.01
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


KERNELS = """
import importlib
from pathlib import Path

# The module: its function has the same name.
loss = importlib.import_module("specdistill_kernels.fused_divergence")

def choose(requested, tensor):
    Path({mark!r}).touch()
    return "fused"

loss.choose = choose
"""


def test_the_loss_kernels_train_the_same_on_shared_weights(folder, tmp_path):
    """Triton's kernels, interpreted, get whole weights under FSDP2; one process computes the loss in torch."""
    one, two = (settings(folder, tmp_path / name, method="gkd", batch_size=7, steps=3) for name in ("one", "two"))
    train_draft(TrainConfig.flat(**one))
    mark = tmp_path / "kernels were asked"
    (tmp_path / "sitecustomize.py").write_text(KERNELS.format(mark=str(mark)))
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = launch(two | {"shard": "draft"}, {"TRITON_INTERPRET": "1", "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr[-3000:]
    assert mark.exists()
    compare(folder, tmp_path)


@pytest.mark.parametrize(("method", "shard"), [("gkd", "none"), ("skd", "draft")])
def test_two_hundred_steps_of_unequal_rollouts_end(folder, tmp_path, method, shard):
    """Answers of different lengths per rank, coins, a short last batch: nobody waits for ever."""
    arguments = {"method": method, "steps": 200, "eval_every": 100, "batch_size": 3, "micro_batch_size": 1}
    arguments |= {"shard": shard, "max_new_tokens": 5}
    done = launch(settings(folder, tmp_path / "out", **arguments))
    assert done.returncode == 0, done.stderr[-3000:]
    assert history(tmp_path / "out")[-1]["step"] == 200


def test_a_sharded_run_that_was_killed_goes_on(folder, tmp_path):
    uncut, cut = (settings(folder, tmp_path / name, method="gkd", steps=12, shard="draft") for name in ("uncut", "cut"))
    assert launch(uncut).returncode == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(cut), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not (tmp_path / "cut" / "checkpoints" / "step-000006").exists():
        time.sleep(0.02)
    # The ranks are in sessions of their own.
    for started in (process, *psutil.Process(process.pid).children(recursive=True)):
        os.kill(started.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut" / "summary.json").exists(), "killed in the middle"
    assert launch(cut | {"resume": True}).returncode == 0
    for wanted, got in zip(history(tmp_path / "uncut"), history(tmp_path / "cut"), strict=True):
        assert got.pop("watched") == wanted.pop("watched")
        assert got == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shard": "target", "method": "distillspec"}, "specdistill generate"),
        ({"shard": "target", "method": "skd"}, "not with skd"),
        ({"shard": "draft", "lora_rank": 4}, "--lora-rank"),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_loading(folder, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig.flat(**settings(folder, tmp_path / "out", **changes))


def test_sharding_needs_several_processes(folder, tmp_path):
    with pytest.raises(ConfigError, match="accelerate launch --multi_gpu"):
        train_draft(TrainConfig.flat(**settings(folder, tmp_path / "out", shard="draft")))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_accelerates_own_sharding_is_refused(folder, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match="--shard draft"):
        train_draft(TrainConfig.flat(**settings(folder, tmp_path / "out")))


@pytest.mark.parametrize("name", ["one_node_8_gpus", "several_nodes"])
def test_the_ready_configurations_launch(folder, tmp_path, name):
    """As they are, but for the number of processes and machines: this machine is one with two cores."""
    file = Path(__file__).parents[2] / "configs" / "accelerate" / f"{name}.yaml"
    done = launch(
        settings(folder, tmp_path / "out", steps=2, shard="draft"), launcher=["--config_file", str(file), "--multi_gpu"]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["processes"] == 2


def test_a_device_with_a_number_is_still_a_cpu():
    """A rank's device is cpu:0; taking that for a GPU gave every rank a bfloat16 target."""
    assert resolve_dtype("auto", "cpu:0") == torch.float32 and resolve_dtype("auto", "cuda:1") == torch.bfloat16


def test_a_refused_run_ends_all_ranks(folder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    done = launch(settings(folder, tmp_path / "full"))
    assert done.returncode != 0 and "already holds files" in done.stderr


def test_shares_cover_every_item_once_and_seeds_do_not_depend_on_the_ranks():
    for world in (1, 2, 3, 5):
        ranks = [Ranks(rank, world) for rank in range(world)]
        parts = [EpochSampler(10, 4, seed=1).next() for _ in ranks]
        shared = [rank.share(part) for rank, part in zip(ranks, parts, strict=True)]
        assert sorted(chain(*shared)) == sorted(parts[0])
        assert max(map(len, shared)) == ranks[0].largest_share(4)
        prompts = [type("P", (), {"id": str(i)}) for i in range(6)]
        drawn = [PromptSampler(prompts, [[1]] * 6, 5, 0, rank).next_prompts() for rank in ranks]
        alone = PromptSampler(prompts, [[1]] * 6, 5, 0).next_prompts()
        assert sorted(chain(*drawn)) == sorted(alone)
