"""Two processes under `accelerate launch` (gloo) train the same draft as one: same loss and gradient, no deadlock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model, save

from specdistill import TrainConfig, train_draft
from specdistill.distill.ranks import Ranks
from specdistill.distill.sources import PromptTurns, Turns


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    save(make_model(layers=2), folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    prompts = [{"prompt": f"w{i} w{(7 * i) % 60}", "answer": " ".join(["w3"] * (1 + i % 6))} for i in range(20)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def settings(files, output, **changes):
    defaults = {
        "target": str(files / "target"),
        "draft": str(files / "draft"),
        "output": str(output),
        "prompts": str(files / "prompts.jsonl"),
        "heldout_prompts": 4,
        "rollouts_per_prompt": 2,
        "max_new_tokens": 10,
        "batch_size": 4,
        "steps": 6,
        "eval_every": 3,
        "patience": 0,
        "learning_rate": 1e-3,
        "device": "cpu",
    }
    return defaults | changes


def launch(arguments, processes=2):
    flags = [text for name, value in arguments.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    # --multi_gpu is accelerate's word for several processes started by torch; its --cpu would start a single one.
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    return subprocess.run(
        [*command, "-m", "specdistill", "train-draft", *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def history(output):
    return [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]


CASES = {
    "gkd-accumulated": {"method": "gkd", "batch_size": 7, "micro_batch_size": 2},
    "skd": {"method": "skd", "steps": 3},
    "a-rank-without-tokens": {"method": "supervised-kd", "batch_size": 1},
}


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_train_as_one(files, tmp_path, name):
    one, two = (settings(files, tmp_path / folder, **CASES[name]) for folder in ("one", "two"))
    train_draft(TrainConfig(**one))
    done = launch(two)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "summary.json").read_text())["processes"] == 2
    single, double = history(tmp_path / "one"), history(tmp_path / "two")
    assert len(single) == len(double)
    for wanted, got in zip(single, double, strict=True):
        for key in ("loss", "grad_norm", "alpha", "tokens_seen", "heldout_alpha_sampled"):
            if key in wanted:
                assert got[key] == pytest.approx(wanted[key], rel=2e-3), key
    # Adam divides by the gradient's own size: where that is rounding, so is the step. The updates as a whole agree.
    start, weights, others = (
        torch.cat([tensor.reshape(-1) for _, tensor in sorted(load_file(folder / "model.safetensors").items())])
        for folder in (files / "draft", tmp_path / "one", tmp_path / "two")
    )
    assert float((weights - others).norm() / (weights - start).norm()) < 0.05
    assert not [path for path in (tmp_path / "two").iterdir() if path.name.startswith(".")]


def test_two_hundred_steps_of_unequal_rollouts_end(files, tmp_path):
    """Answers of different lengths per rank, coins, a short last batch: nobody waits for ever."""
    arguments = {"method": "gkd", "steps": 200, "eval_every": 100, "batch_size": 3, "micro_batch_size": 1}
    done = launch(settings(files, tmp_path / "out", **arguments))
    assert done.returncode == 0, done.stderr[-3000:]
    assert history(tmp_path / "out")[-1]["step"] == 200


def test_a_refused_run_ends_all_ranks(files, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    done = launch(settings(files, tmp_path / "full"))
    assert done.returncode != 0 and "already holds files" in done.stderr


def test_shares_cover_every_item_once_and_seeds_do_not_depend_on_the_ranks():
    for world in (1, 2, 3, 5):
        ranks = [Ranks(rank, world) for rank in range(world)]
        parts = [Turns(10, 4, seed=1).next() for _ in ranks]
        shared = [each.share(part) for each, part in zip(ranks, parts, strict=True)]
        assert sorted(chain(*shared)) == sorted(parts[0])
        assert max(map(len, shared)) == ranks[0].largest_share(4)
        prompts = [type("P", (), {"id": str(i)}) for i in range(6)]
        drawn = [PromptTurns(prompts, [[1]] * 6, 5, 0, each).next_prompts() for each in ranks]
        alone = PromptTurns(prompts, [[1]] * 6, 5, 0).next_prompts()
        assert sorted(chain(*drawn)) == sorted(alone)
