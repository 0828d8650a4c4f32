"""The numbers that a run watches and the draft that it keeps: held-out alpha by hand, the rule, when it stops."""

from __future__ import annotations

import pytest
import torch
from by_hand import TARGET, ByHand, answer_logits, close, frozen_run, greedy_answer, plain_model, prompt_of, watched_run
from tiny_runs import history

from specdistill.data import Example
from specdistill.distill.answers.shards import read_rollouts, to_example

RULES = ("greedy", "sampled", "argmax_draft")


@pytest.fixture(scope="module")
def hand(tiny):
    return ByHand(tiny)


def heldout_examples(output) -> list[Example]:
    return [to_example(row) for row in read_rollouts(output / "heldout")]


def filtered(logits: torch.Tensor, temperature: float = 1.0, top_k: int = 65) -> torch.Tensor:
    """Probabilities of the likeliest `top_k` ids."""
    lowest = logits.topk(top_k).values[:, -1:]
    return (logits.masked_fill(logits < lowest, -torch.inf) / temperature).softmax(-1)


def alphas(target, draft, examples, **sampling) -> dict[str, float]:
    """Rule -> mean alpha over all tokens."""
    wanted, own = (torch.cat([answer_logits(model, one) for one in examples]) for model in (target, draft))
    p, q = filtered(wanted, **sampling), filtered(own, **sampling)
    says = q.argmax(-1)
    values = {
        "greedy": (p.argmax(-1) == says).double(),
        "sampled": torch.minimum(p, q).sum(-1),
        "argmax_draft": p.gather(1, says[:, None])[:, 0],
    }
    return {rule: float(value.mean()) for rule, value in values.items()}


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.6}, {"top_k": 4}], ids=str)
def test_held_out_alpha_is_that_of_the_served_sampling(tiny, tmp_path, hand, sampling):
    """Whatever --loss-temperature says: the server does not know it."""
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", loss_temperature=3.0, **sampling)
    expected = alphas(hand.target, hand.draft, heldout_examples(run.output), **sampling)
    for entry in run.history:
        assert {rule: entry[f"heldout_alpha_{rule}"] for rule in RULES} == {
            rule: close(value) for rule, value in expected.items()
        }


@pytest.mark.parametrize("method", ["supervised-kd", "gkd", "skd", "sft"])
def test_held_out_answers_are_the_targets(tiny, tmp_path, method):
    run = frozen_run(tiny, tmp_path / "out", method=method, top_k=1)
    target = plain_model(tiny / "target")
    answers = heldout_examples(run.output)
    assert len(answers) == 6
    for one in answers:
        assert one.answer_ids == greedy_answer(target, prompt_of(one.prompt_id), 12)
        assert set(one.provenance) == {TARGET}


def test_at_temperature_0_every_rule_is_agreement(tiny, tmp_path, hand):
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", temperature=0.0, rule="greedy")
    agreement = alphas(hand.target, hand.draft, heldout_examples(run.output))["greedy"]
    assert [run.history[0][f"heldout_alpha_{rule}"] for rule in RULES] == [close(agreement)] * 3


SWINGING = {"method": "supervised-kd", "steps": 16, "eval_every": 1, "patience": 0, "learning_rate": 3e-2}


@pytest.fixture(scope="module")
def by_rule(tiny, tmp_path_factory):
    """Runs that differ in --rule alone, at a rate at which the rules disagree on the best step."""
    folder = tmp_path_factory.mktemp("rules")
    return {rule: watched_run(tiny, folder / rule, rule=rule, **SWINGING) for rule in RULES}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_decides_which_draft_is_kept(tiny, by_rule, rule):
    run = by_rule[rule]
    values = {name: [entry[f"heldout_alpha_{name}"] for entry in run.history] for name in RULES}
    best = {name: numbers.index(max(numbers)) for name, numbers in values.items()}
    assert len(set(best.values())) > 1, "the rules disagree"
    assert run.summary.best_step == best[rule]
    saved = alphas(plain_model(tiny / "target"), plain_model(run.output), heldout_examples(run.output))
    assert saved[rule] == close(max(values[rule]))
    assert run.summary.after[rule] == close(saved[rule])


def test_sampled_is_watched_by_default(tiny, tmp_path, by_rule):
    run = watched_run(tiny, tmp_path / "out", **SWINGING)
    assert run.summary.best_step == by_rule["sampled"].summary.best_step


def test_eval_every_and_patience_decide_when_it_ends(tiny, tmp_path):
    """A draft that stands still has no new best: after `patience` looks, `eval_every` steps apart, the run ends."""
    run = frozen_run(tiny, tmp_path / "out", method="sft", steps=40, eval_every=3, patience=2)
    assert [entry["step"] for entry in run.history] == [0, 3, 6] and run.summary.steps == 6
    run = frozen_run(tiny, tmp_path / "patient", method="sft", steps=7, eval_every=3, patience=0)
    assert [entry["step"] for entry in run.history] == [0, 3, 6, 7]
    assert history(tmp_path / "patient")[-1]["tokens_seen"] == sum(step.tokens for step in run.measured)


def test_the_draft_of_the_run_is_the_one_that_was_named_and_the_target_stays(tiny, tmp_path, hand):
    """Target and draft swapped would give other losses everywhere; here their files say so."""
    before = {path.name: path.read_bytes() for path in sorted((tiny / "target").iterdir())}
    run = watched_run(tiny, tmp_path / "out", method="supervised-kd", steps=6, eval_every=2, learning_rate=1e-2)
    assert {path.name: path.read_bytes() for path in sorted((tiny / "target").iterdir())} == before
    assert plain_model(run.output).config.num_hidden_layers == 1
    assert run.losses[0] == close(hand.loss("fkl", run.steps[0]))
