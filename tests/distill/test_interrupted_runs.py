"""Ctrl-C at any moment of a run: no step is lost, --resume ends as if nothing had come, and what is said is true."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from held_process import stopped
from safetensors.torch import load_file
from tiny_models import make_model
from tiny_runs import before_each_step, prompt_rows, same_weights, train_config, write_folder

from specdistill import train_draft
from specdistill.distill.sequences.pool import EpochSampler
from specdistill.distill.training import trainer as trainer_module
from specdistill.distill.training.checkpoints import Checkpoints, newest_step
from specdistill.distill.training.measures import HeldOutMeasures
from specdistill.models.load import load_model


@pytest.fixture(autouse=True)
def interruptible():
    """A shell starts background jobs with SIGINT ignored, and Python then leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A GPT-2 draft: it has dropout, whose stream must go on as well."""
    draft = make_model("gpt2", layers=1, seed=9)
    draft.model.config.attn_pdrop = draft.model.config.resid_pdrop = 0.1
    models = {"target": make_model(layers=3), "draft": draft}
    return write_folder(tmp_path_factory.mktemp("interrupting"), models, prompt_rows(20))


def config(folder, output, **settings):
    every = {"heldout_prompts": 5, "batch_size": 4, "steps": 9, "eval_every": 4, "patience": 0}
    return train_config(folder, output, **(every | settings))


class Lines:
    """Progress that keeps what it was told."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def task(self, name, total, unit):
        from specdistill.progress import Quiet

        return Quiet().task(name, total, unit)


def ctrl_c(*arguments, **named):
    os.kill(os.getpid(), signal.SIGINT)


def at_call(patch, owner, name, number, *, after=False):
    """Sends Ctrl-C before (or after) the n-th call of a function, counted from 1."""
    original, calls = getattr(owner, name), iter(range(1, 10**6))

    def counted(*arguments, **named):
        now = next(calls) == number
        if now and not after:
            ctrl_c()
        result = original(*arguments, **named)
        if now and after:
            ctrl_c()
        return result

    patch.setattr(owner, name, counted)


MOMENTS = {
    # moment: (what is interrupted, which call of it, after it instead of before, step of the checkpoint)
    "before the first step": (trainer_module.DraftTrainer, "train_step", 1, False, 0),
    "with the batch drawn": (trainer_module.DraftTrainer, "train_step", 3, False, 2),
    "while the batch is drawn": (EpochSampler, "next", 3, True, 2),
    "in the update of weights": (torch.optim.AdamW, "step", 3, False, 3),
    "after the update": (torch.optim.AdamW, "step", 3, True, 3),
    # The start's is the first evaluation.
    "in an evaluation": (HeldOutMeasures, "score", 2, False, 4),
    "after an evaluation's numbers": (HeldOutMeasures, "score", 2, True, 4),
    "while the best draft is saved": (trainer_module, "save_draft", 1, False, 4),
    "while a checkpoint is written": (Checkpoints, "write", 1, False, 4),
    "in the last evaluation": (HeldOutMeasures, "score", 4, False, 9),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_no_step_is_lost_and_the_rest_is_bit_for_bit_the_same(folder, tmp_path, monkeypatch, moment):
    owner, name, call, after, step = MOMENTS[moment]
    train_draft(config(folder, tmp_path / "uncut", method="gkd"))
    broken, told = config(folder, tmp_path / "cut", method="gkd", resume=True), Lines()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_call(patch, owner, name, call, after=after)
        train_draft(broken, told)
    assert newest_step(tmp_path / "cut") == step
    assert f"a checkpoint after step {step}" in told.said[-1]
    assert told.said[-1].endswith(f"the same command with --resume goes on after step {step}")
    told = Lines()
    train_draft(broken, told)
    assert f"going on after step {step}" in told.said
    assert (tmp_path / "cut/history.jsonl").read_text() == (tmp_path / "uncut/history.jsonl").read_text()
    assert same_weights(tmp_path / "cut", tmp_path / "uncut")


METHODS = {
    "skd": {"method": "skd"},
    "own answers": {"method": "distillspec", "target_fraction": 0.5, "micro_batch_size": 3},
    "parallel": {"method": "sft", "parallel": 3, "parallel_keep": 0.7},
    "lora": {"method": "distillspec", "lora_rank": 2},
    "last kept": {"method": "distillspec", "keep": "last"},
    "patience": {"method": "distillspec", "patience": 1, "learning_rate": 1e-9},
}


@pytest.mark.parametrize("name", METHODS)
def test_every_kind_of_run_goes_on_after_two_interruptions(folder, tmp_path, monkeypatch, name):
    """skd counts replaced tokens between two evaluations: the history must not lose those before the interruption."""
    train_draft(config(folder, tmp_path / "uncut", **METHODS[name]))
    broken = config(folder, tmp_path / "cut", resume=True, **METHODS[name])
    for step, evaluation in ((3, 0), (0, 1)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            before_each_step(patch, lambda done, examples, step=step: ctrl_c() if done == step else None)
            if evaluation:
                at_call(patch, HeldOutMeasures, "score", evaluation)
            train_draft(broken)
    assert newest_step(tmp_path / "cut") == 4
    train_draft(broken)
    assert (tmp_path / "cut/history.jsonl").read_text() == (tmp_path / "uncut/history.jsonl").read_text()
    assert same_weights(tmp_path / "cut", tmp_path / "uncut")


def interrupted_card(folder, output, monkeypatch, step, **settings):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_each_step(patch, lambda done, examples: ctrl_c() if done == step else None)
        train_draft(config(folder, output, **settings))
    card = output / "README.md"
    return " ".join(card.read_text().split()) if card.exists() else None


def test_the_unmeasured_draft_is_that_of_the_step_that_the_card_names(folder, tmp_path, monkeypatch):
    card = interrupted_card(folder, tmp_path / "cut", monkeypatch, 3)
    assert "2 steps (interrupted)" in card
    assert "Step 2 was kept: the last one before the interruption, which was not measured." in card
    written = load_model(str(tmp_path / "cut"), "draft").model
    checkpoint = load_file(tmp_path / "cut/checkpoints/step-000002/network.safetensors")
    start = load_model(str(folder / "draft"), "draft").model
    assert all(torch.equal(written.get_parameter(name), weight) for name, weight in checkpoint.items())
    assert any(not torch.equal(start.get_parameter(name), weight) for name, weight in checkpoint.items())


def test_guesses_that_nobody_measured_are_served_one_token_per_pass(folder, tmp_path, monkeypatch):
    card = interrupted_card(folder, tmp_path / "cut", monkeypatch, 3, **METHODS["parallel"])
    assert "Beware: nobody has measured whether the guesses behind mask tokens are learned" in card
    assert "parallel_drafting" not in card


def test_an_earlier_best_stays_and_the_card_says_so(folder, tmp_path, monkeypatch):
    card = interrupted_card(folder, tmp_path / "cut", monkeypatch, 7, keep="last")
    assert "6 steps (interrupted)" in card and "Step 4 was kept: the last one that was measured (--keep last)" in card
    assert "not measured" not in card


def test_where_the_start_is_the_best_it_is_written_and_named(folder, tmp_path, monkeypatch):
    """Before, the last weights were written under the words `Step 0 was kept: the start`."""
    monkeypatch.setattr(HeldOutMeasures, "merit", lambda self, means: 0.0)
    monkeypatch.setattr(HeldOutMeasures, "wins_between_equals", lambda self, new, best: False)
    card = interrupted_card(folder, tmp_path / "cut", monkeypatch, 7)
    assert "6 steps (interrupted)" in card and "Step 0 was kept: the start" in card and "not measured" not in card
    assert same_weights(tmp_path / "cut", folder / "draft")


def test_before_the_first_step_there_is_no_draft_and_no_card(folder, tmp_path, monkeypatch):
    assert interrupted_card(folder, tmp_path / "cut", monkeypatch, 1) is None
    assert not list((tmp_path / "cut").glob("*.safetensors"))


def test_a_second_interruption_leaves_no_card_of_a_draft_that_is_not_there(folder, tmp_path, monkeypatch):
    """The card named step 2 and its launch, and no weights had been written."""
    at_call(monkeypatch, Checkpoints, "write", 1)
    assert interrupted_card(folder, tmp_path / "cut", monkeypatch, 3) is None
    assert not list((tmp_path / "cut").glob("*.safetensors"))


def test_the_card_of_an_interruption_goes_with_its_draft(folder, tmp_path, monkeypatch):
    """A run that went on and was killed left a later draft under the card of an earlier step."""
    assert interrupted_card(folder, tmp_path / "cut", monkeypatch, 3) is not None
    save, there = trainer_module.save_draft, []

    def watched(*arguments):
        save(*arguments)
        there.append((tmp_path / "cut/README.md").exists())

    monkeypatch.setattr(trainer_module, "save_draft", watched)
    train_draft(config(folder, tmp_path / "cut", resume=True))
    assert there and not any(there)
    assert "9 steps, peak" in " ".join((tmp_path / "cut/README.md").read_text().split())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_what_it_wrote_and_goes_on(folder, tmp_path, sent, capsys):
    from specdistill.cli import main

    output = tmp_path / "run"
    command = ["train-draft", "--target", str(folder / "target"), "--draft", str(folder / "draft"), "--steps", "6"]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--output", str(output), "--max-new-tokens", "4"]
    command += ["--eval-every", "6", "--heldout-prompts", "2", "--rollouts-per-prompt", "1"]
    place = "specdistill.distill.training.guard_rails.out_of_memory_named"
    code, _, errors = stopped(tmp_path, command, place, 3, sent)
    assert code == 128 + sent
    assert "writing a checkpoint after step 3, and its draft, which was not measured (Ctrl-C again ends at" in errors
    assert (
        f"interrupted; in {output}: a checkpoint after step 3, a draft, the rollouts; the same command with" in errors
    )
    assert main([*command, "--resume"]) == 0
    assert "going on after step 3" in capsys.readouterr().err
    assert json.loads((output / "summary.json").read_text())["steps"] == 6
