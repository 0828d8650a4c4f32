"""Training logs and writes what happened: alpha of all tokens, a step's whole selection, a first step that learns."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import make_model, perturbed
from tiny_runs import (
    before_each_step,
    example,
    generate_config,
    gradient,
    history,
    loss_module,
    loss_of,
    prompt_rows,
    same_weights,
    standard_models,
    target_states,
    train,
    train_config,
    write_folder,
)

from specdistill import generate
from specdistill.data.batch import collate
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.processes.ranks import ALONE
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.adaspec import select_tokens
from specdistill.distill.training.loss import StepTotals
from specdistill.distill.training.step import StepRunner
from specdistill.models import ModelPair

EXAMPLES = [example((5 + i, 9), range(10 + i, 10 + i + length), name=f"p{i}") for i, length in enumerate((4, 2, 5, 3))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("tiny"), standard_models())


def mean_alpha(draft, target):
    hidden = torch.cat(target_states(target, EXAMPLES))
    output = loss_module(draft, target)(collate(EXAMPLES), hidden, StepTotals(14, 4))
    return float(output.alpha_sum) / 14


def runner(folder, tmp_path, draft, target, judge=None, **settings):
    config = train_config(folder, tmp_path, steps=10, **settings)
    draft.model.requires_grad_(True)
    target.model.requires_grad_(False)
    return StepRunner(
        ModelPair(target, draft),
        TargetStates(target),
        config.objective,
        config.optimiser,
        ALONE,
        reference=judge,
    )


@pytest.mark.parametrize("micro_batch_size", [0, 1, 3])
def test_adaspec_logs_alpha_of_all_tokens_not_of_the_selected(tiny, tmp_path, micro_batch_size):
    target, draft = make_model(), make_model(seed=2, layers=1)
    expected = mean_alpha(draft, target)
    settings = {"reference": "r", "select_fraction": 0.4, "micro_batch_size": micro_batch_size, "batch_size": 4}
    step = runner(tiny, tmp_path, draft, target, perturbed(target, 0.05), **settings).run(EXAMPLES)
    assert step.alpha == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("settings", [{"ce_weight": 1.0}, {"reward": "m:f", "distill_weight": 0.0, "method": "gkd"}])
def test_alpha_is_logged_where_the_divergence_has_no_weight(settings):
    target, draft = make_model(), make_model(seed=2, layers=1)
    assert float(loss_of(draft, target, EXAMPLES, **settings).alpha_sum) / 14 == pytest.approx(
        mean_alpha(draft, target)
    )


def test_adaspec_selects_among_the_whole_step_however_it_is_cut_into_micro_batches(tiny, tmp_path):
    target, reference = make_model(), perturbed(make_model(), 0.05)
    losses, norms = [], []
    for size in (0, 1, 3):
        draft = make_model(seed=2, layers=1)
        settings = {"reference": "r", "select_fraction": 0.3, "micro_batch_size": size, "batch_size": 4}
        step = runner(tiny, tmp_path, draft, target, reference, **settings).run(EXAMPLES)
        losses.append(step.loss)
        norms.append(step.grad_norm)
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-4)
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-3)


def test_adaspec_selects_the_largest_lags():
    factors = select_tokens(torch.tensor([0.1, 3.0, -1.0, 2.0, 0.0]), 0.4)
    assert factors.tolist() == [0, 2.5, 0, 2.5, 0]
    assert select_tokens(torch.zeros(0), 0.4).tolist() == []


def test_jeffreys_is_trained_as_half_and_half():
    """One learning rate and one --ce-weight mean the same for fkl, rkl and the loss between them."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    settings = {"method": "gkd", "temperature": 1.0}
    both = [loss_of(draft, target, EXAMPLES, divergence=kind, **settings).loss for kind in ("fkl", "rkl", "jeffreys")]
    torch.testing.assert_close(both[2], (both[0] + both[1]) / 2)
    parts = [gradient(value, draft) for value in both]
    torch.testing.assert_close(parts[2], (parts[0] + parts[1]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
def test_the_first_step_learns(tiny, tmp_path, warmup):
    target, draft = make_model(), make_model(seed=2, layers=1)
    before = [parameter.clone() for parameter in draft.model.parameters()]
    runs = runner(tiny, tmp_path, draft, target, warmup=warmup, batch_size=4)
    rates = [runs.run(EXAMPLES).learning_rate for _ in range(10)]
    peak = 3e-3
    assert rates[0] > 0 and max(rates) <= peak
    rising = math.ceil(10 * warmup)
    assert rates[:rising] == pytest.approx([peak * (step + 1) / rising for step in range(rising)])
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
    assert any(not torch.equal(a, b) for a, b in zip(before, draft.model.parameters(), strict=True))


def test_a_run_of_one_step_changes_the_draft(tiny, tmp_path):
    settings = {"steps": 1, "eval_every": 1, "learning_rate": 1e-3, "method": "supervised-kd"}
    train(tiny, tmp_path / "one", **settings)
    assert history(tmp_path / "one")[-1]["learning_rate"] == pytest.approx(1e-3)
    moved = load_file(tmp_path / "one" / "model.safetensors")
    start = load_file(tiny / "draft" / "model.safetensors")
    assert any(not torch.equal(moved[name], start[name]) for name in start)


def test_the_logged_learning_rate_is_that_of_the_step(tiny, tmp_path):
    train(tiny, tmp_path / "run", steps=4, eval_every=1, warmup=0.5, method="supervised-kd")
    rates = [entry["learning_rate"] for entry in history(tmp_path / "run")[1:]]
    assert rates[:2] == pytest.approx([1.5e-3, 3e-3]) and rates[3] < rates[2] < 3e-3


def test_greedy_generate_writes_one_answer_per_prompt_by_default(tiny, tmp_path):
    summary = generate(generate_config(tiny, tmp_path / "out", temperature=0.0))
    assert summary.generators["target"].rollouts == len(prompt_rows())
    assert [row["copy"] for row in read_rollouts(tmp_path / "out")] == [0] * len(prompt_rows())


def test_a_greedy_second_model_answers_each_prompt_once_too(tiny, tmp_path):
    settings = {"temperature": 0.0, "other": str(tiny / "draft")}
    generators = generate(generate_config(tiny, tmp_path / "out", **settings)).generators
    assert generators["other"].rollouts == len(prompt_rows())


@pytest.mark.parametrize("method", ["seqkd", "best-of-n", "distillspec"])
def test_methods_at_temperature_0_write_one_answer_per_prompt(tiny, tmp_path, method):
    settings = {"method": method, "temperature": 0.0, "rule": "greedy", "steps": 2, "eval_every": 2}
    train(tiny, tmp_path / "four", rollouts_per_prompt=4, **settings)
    assert {row["copy"] for row in read_rollouts(tmp_path / "four" / "rollouts")} == {0}
    train(tiny, tmp_path / "one", rollouts_per_prompt=1, **settings)
    assert same_weights(tmp_path / "four", tmp_path / "one")


def test_every_step_at_temperature_0_sees_different_prompts(tiny, tmp_path, monkeypatch):
    seen = []
    before_each_step(monkeypatch, lambda step, examples: seen.extend(one.prompt_id for one in examples))
    settings = {"temperature": 0.0, "rule": "greedy", "target_fraction": 1.0, "steps": 2, "eval_every": 2}
    train(tiny, tmp_path / "out", rollouts_per_prompt=4, batch_size=8, **settings)
    assert len(set(seen)) == len(seen) == 16
