"""Acceptance predictions, intervals, costs and economics."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tiny_models import make_model, perturbed

from specdistill.data import Example, Provenance
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.costs import measure_costs
from specdistill.decoding.generation import Generation, Round
from specdistill.evaluation import economics
from specdistill.evaluation.acceptance import (
    PromptAcceptance,
    alpha_sums,
    answer_hidden_states,
    expected_rounds,
    predicted_tau,
    score,
)
from specdistill.evaluation.sections import by_position
from specdistill.evaluation.statistics import Estimate, of_sums, paired_difference, ratio

PROMPTS = [[5, 6, 7, 8, 9, 10], [20, 21], [30, 31, 32, 33], [9], [40, 50, 60]]


def answers(target, sampling, new=40, prompts=PROMPTS, seeds=None):
    written = generate_plain(
        target, prompts, sampling=sampling, max_new_tokens=new, seeds=seeds or list(range(len(prompts)))
    )
    return [
        Example(str(number), tuple(prompt), tuple(each.token_ids), (int(Provenance.TARGET),) * len(each.token_ids))
        for number, (prompt, each) in enumerate(zip(prompts, written, strict=True))
    ]


def brute_force_rounds(chances, gamma):
    """Expected rounds by enumerating which tokens the draft would get right."""
    chances = list(chances)[1:]
    total = 0.0
    for outcome in itertools.product([0, 1], repeat=len(chances)):
        weight = np.prod([c if hit else 1 - c for c, hit in zip(chances, outcome, strict=True)])
        position, rounds = 0, 0
        while position < len(chances):
            kept = 0
            while kept < gamma and position + kept < len(chances) and outcome[position + kept]:
                kept += 1
            position += kept + 1
            rounds += 1
        total += weight * rounds
    return total


@pytest.mark.parametrize("gamma", [1, 2, 3, 8])
def test_expected_rounds_equals_enumeration(gamma):
    chances = np.random.default_rng(0).random(9)
    assert expected_rounds(chances, gamma) == pytest.approx(brute_force_rounds(chances, gamma))
    assert expected_rounds(np.ones(9), gamma) == -(-8 // (gamma + 1))
    assert expected_rounds(np.zeros(9), gamma) == 8
    assert expected_rounds(np.ones(1), gamma) == 0


@pytest.mark.parametrize("gamma", [1, 3, 5])
def test_greedy_prediction_is_exactly_what_the_decoder_does(gamma):
    target = make_model()
    draft = perturbed(target, 0.02)
    sampling = Sampling(temperature=0.0)
    records = score(target, draft, answers(target, sampling), sampling)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=gamma, sampling=sampling)
    results = decoder.generate(PROMPTS, max_new_tokens=40, seeds=[0] * 5)
    tokens, rounds = predicted_tau(records, "greedy", gamma)
    assert rounds.tolist() == [len(result.rounds) for result in results]
    assert tokens.tolist() == [len(result.token_ids) - 1 for result in results]


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft"])
def test_sampled_prediction_agrees_with_the_decoder(rule):
    target = make_model()
    draft = perturbed(target, 0.02)
    sampling = Sampling(temperature=0.3, top_k=20)
    prompts, seeds = PROMPTS * 30, list(range(150))
    records = score(target, draft, answers(target, sampling, 24, prompts, seeds), sampling)
    predicted = ratio(*predicted_tau(records, rule, 3))
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=sampling, rule=rule)
    results = decoder.generate(prompts, max_new_tokens=24, seeds=[seed + 1000 for seed in seeds])
    measured = ratio(
        [sum(entry.emitted for entry in each.rounds) for each in results], [len(each.rounds) for each in results]
    )
    assert 1.2 < measured.mean < 3.8
    spread = (predicted.high - predicted.low) + (measured.high - measured.low)
    assert abs(predicted.mean - measured.mean) < spread, (predicted, measured)


def test_alpha_by_hand_and_identity():
    target, sampling = make_model(), Sampling(temperature=0.7)
    sequences = answers(target, sampling, 12)
    same = score(target, target, sequences, sampling, batch_size=2)
    for record in same:
        for rule in ("greedy", "sampled"):
            np.testing.assert_allclose(record.alpha[rule], 1, atol=1e-5)
            np.testing.assert_allclose(record.token_acceptance[rule], 1, atol=1e-5)
    draft = perturbed(target, 0.05)
    record = score(target, draft, sequences, sampling)[0]
    ids = torch.tensor([sequences[0].prompt_ids + sequences[0].answer_ids])
    with torch.no_grad():
        p, q = (
            (model.logits(model.hidden_states(ids))[0, 5:-1] / 0.7).double().softmax(-1) for model in (target, draft)
        )
    np.testing.assert_allclose(record.alpha["sampled"], torch.minimum(p, q).sum(-1), atol=1e-5)
    np.testing.assert_allclose(record.alpha["argmax_draft"], p.gather(1, q.argmax(-1)[:, None])[:, 0], atol=1e-5)
    labels = ids[0, 6:, None]
    np.testing.assert_allclose(
        record.token_acceptance["sampled"], (q / p).gather(1, labels)[:, 0].clamp(max=1), atol=1e-4
    )


def test_repetition_penalty_of_a_generation_config_does_not_reach_the_scores():
    target, sampling = make_model(), Sampling(temperature=0.0)
    target.model.generation_config.repetition_penalty = 5.0
    target.model.generation_config.top_k = 1
    records = score(target, target, answers(target, sampling), sampling)
    assert ratio(*alpha_sums(records, "greedy")).mean == 1
    assert ratio(*alpha_sums(records, "sampled", at_1=True)).mean == pytest.approx(1, abs=1e-5)


def test_the_cache_spares_the_pass_and_changes_nothing():
    target, sampling = make_model(), Sampling()
    sequences = answers(target, sampling, 8)
    cache: dict = {}
    first = answer_hidden_states(target, sequences[:2], cache)
    assert set(cache) == set(sequences[:2])
    again = answer_hidden_states(target, sequences, cache)
    assert again[0] is first[0] and set(cache) == set(sequences)
    for one, other in zip(again, answer_hidden_states(target, sequences), strict=True):
        torch.testing.assert_close(one, other)


def test_positions_joint_and_conditional():
    rounds = [Round(3, 3, 4), Round(3, 1, 2), Round(3, 0, 1), Round(1, 1, 2)]
    joint, conditional = by_position([Generation(rounds=rounds)], 3)
    assert joint == pytest.approx([3 / 4, 1 / 3, 1 / 3]) and conditional == pytest.approx([3 / 4, 1 / 2, 1])


def test_a_position_that_no_round_reached_is_unknown():
    """It was an acceptance of 0."""
    rounds = [Round(3, 1, 2), Round(3, 0, 1)]
    joint, conditional = by_position([Generation(rounds=rounds)], 4)
    assert joint == pytest.approx([1 / 2, 0, 0, math.nan], nan_ok=True)
    assert conditional == pytest.approx([1 / 2, 0, math.nan, math.nan], nan_ok=True)


def test_bootstrap_covers_and_pairs():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        sample = generator.normal(1.0, 1.0, 40)
        estimate = ratio(sample, np.ones(40))
        covered += estimate.low <= 1.0 <= estimate.high
    assert covered >= 85
    base = generator.normal(0, 10, 50)
    ones = np.ones(50)
    difference = paired_difference((base + 0.5, ones), (base, ones))
    assert difference.low == pytest.approx(0.5) and difference.high == pytest.approx(0.5)
    assert ratio([1, 2], [1, 3]).mean == pytest.approx(3 / 4)
    assert np.isnan(of_sums(lambda a, b: a / b, [0.0], [0.0]).low)


def test_economics_by_hand():
    costs = economics.Costs(1.0, 0.1, {5: 1.6})
    assert 2.5 / costs.round_cost(4, 2.5) == pytest.approx(1.25)
    assert economics.mean_acceptance_length_iid(0.5, 3) == pytest.approx(1.875)
    alpha = economics.break_even_alpha(4, 4 * 0.1 + 1.6)
    assert alpha is not None
    tau = economics.mean_acceptance_length_iid(alpha, 4)
    assert tau / costs.round_cost(4, tau) == pytest.approx(1)
    assert economics.break_even_alpha(2, 2 * 1.0 + 1.5) is None
    # Leviathan's case: verification costs one step; a gain needs alpha > c.
    assert economics.break_even_alpha(1, 0.3 + 1.0) == pytest.approx(0.3)


def judged(draft_seconds, taus, measured, alpha=0.5, gamma=2):
    costs = economics.Costs(1.0, draft_seconds, {1: 1.0, 2: 1.2, 3: 1.4})
    return economics.judge(costs, taus, gamma, alpha, Estimate(*measured))


def test_verdicts():
    slow = judged(1.5, {1: 1.9, 2: 2.7}, (0.6, 0.5, 0.7))
    assert slow.verdict == "cannot pay" and slow.perfect_draft_speedup < 1 and slow.break_even_alpha is None
    good = judged(0.1, {1: 1.7, 2: 2.2}, (1.3, 1.2, 1.4))
    assert good.verdict == "pays" and good.best_num_draft_tokens == 2 and "1.30x" in good.why
    poor = judged(0.1, {1: 1.2, 2: 1.3}, (0.8, 0.7, 0.9), alpha=0.2)
    assert poor.verdict == "does not pay" and "needs alpha" in poor.why
    unsure = judged(0.1, {1: 1.7, 2: 1.65}, (1.02, 0.97, 1.08))
    assert unsure.verdict == "does not pay" and "with 1 draft token 1.31x is predicted" in unsure.why
    # "It needs alpha 0.25 and has 0.26" beside "does not pay" reads as a mistake unless the interval is named.
    assert "the interval spans 1" in unsure.why and "--latency-prompts" in unsure.why
    assert "spans 1" not in poor.why + good.why + slow.why
    # What was measured and what the costs of steps say can't both be so.
    for draft_seconds, measured in ((1.5, (1.4, 1.3, 1.5)), (0.1, (2.6, 2.5, 2.7))):
        torn = judged(draft_seconds, {1: 1.9, 2: 2.7}, measured)
        assert torn.verdict == "undecided" and torn.perfect_draft_speedup < measured[1]
        assert "); more was measured than that: " in torn.why and "other work ran on this machine" in torn.why
    # "It needs alpha 0.6 and has 0.9" beside "does not pay" is explained.
    dear = judged(0.1, {1: 1.7, 2: 2.2}, (0.8, 0.7, 0.9), alpha=0.9)
    assert "by the costs of single steps it would be 1.38x: reading the prompts counts" in dear.why


def test_costs_are_measured_for_every_width():
    costs = measure_costs(
        make_model(layers=6), make_model(layers=1), batch_size=2, max_draft_tokens=3, context=20, repeats=3
    )
    assert set(costs.verify_cost) == {1, 2, 3, 4} and costs.verify_cost[1] == 1
    assert 0 < costs.cost_ratio < 1


def test_records_hold_alpha_per_prompt():
    record = PromptAcceptance({"sampled": np.array([0.5, 1.0])}, {}, {}, np.zeros(2))
    assert alpha_sums([record], "sampled")[0].tolist() == [1.5] and record.num_tokens == 2
