"""Predicting a parallel draft: its guesses behind every token of an answer, and the rounds that follow from them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from output_law import endless_pair
from parallel_drafts import ANSWER, PROMPTS, guesses, make_parallel, taught_pair
from tiny_models import make_model

from specdistill.data.batch import Example, Provenance
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.generation import as_example
from specdistill.evaluation import acceptance, parallel_states
from specdistill.evaluation.acceptance import predicted_tau, score, score_draft
from specdistill.evaluation.parallel_states import guessing_states
from specdistill.evaluation.rounds import by_start, expected_rounds
from specdistill.files.parallel_drafting import ParallelDrafting

GREEDY = Sampling(temperature=0.0)


def answered(target, prompts=PROMPTS, sampling=GREEDY, new=ANSWER, seeds=None) -> list[Example]:
    seeds = seeds or list(range(len(prompts)))
    written = generate_plain(target, prompts, sampling=sampling, max_new_tokens=new, seeds=seeds)
    return [
        as_example(str(row), prompt, answer, Provenance.TARGET)
        for row, (prompt, answer) in enumerate(zip(prompts, written, strict=True))
    ]


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt2"])
@pytest.mark.parametrize("tokens", [256, 5])
def test_guesses_behind_every_token_are_those_of_plain_passes(family, tokens, monkeypatch):
    """Windows of 8 tokens end inside the text; five tokens a pass leave branches of a text in several passes."""
    monkeypatch.setattr(parallel_states, "_TOKENS", tokens)
    target, draft = make_model(family), make_parallel(family, seed=4, layers=2)
    example = answered(target, PROMPTS[2:3], new=14)[0]
    states = guessing_states(draft, [example], 4)[0]
    assert states.shape[:2] == (14, 4)
    for start in range(14):
        text = [*example.prompt_ids, *example.answer_ids[:start]]
        wanted = guesses(draft, text, 4)
        torch.testing.assert_close(draft.logits(states[start]), wanted, atol=1e-3, rtol=1e-3)


def test_a_branch_that_sees_the_text_after_its_anchor_is_caught(monkeypatch):
    """Planted: masks see all of the answer, as with an ordinary causal mask behind the text."""
    draft = make_parallel(seed=4)
    example = answered(make_model(), PROMPTS[2:3], new=14)[0]
    right = guessing_states(draft, [example], 4)[0]
    real = parallel_states.CachedModel.branches
    monkeypatch.setattr(
        parallel_states.CachedModel,
        "branches",
        lambda self, ids, positions, anchors: real(self, ids, positions, torch.full_like(anchors, self.lengths[0] - 1)),
    )
    wrong = guessing_states(draft, [example], 4)[0]
    assert torch.equal(right[:, 0], wrong[:, 0]) and not torch.allclose(right[:5, 1], wrong[:5, 1])


def walked(table: np.ndarray, length: int) -> list[int]:
    """Tokens that each greedy round emits by a table of agreements, as a plain simulation."""
    place, emitted = 1, []
    while place < len(table):
        limit = min(length, len(table) - place - 1)
        kept = next((depth for depth in range(limit) if not table[place, depth]), limit)
        emitted.append(kept + 1)
        place += kept + 1
    return emitted


@pytest.mark.parametrize("batch", [1, len(PROMPTS)])
def test_greedy_prediction_is_what_the_decoder_does_round_for_round(batch):
    target, draft = taught_pair()
    examples = answered(target)
    records = score(target, draft, examples, GREEDY, depths=12)
    alone = score_draft(draft, examples, greedy=True, depths=12)
    for length in (1, 2, 3, 5, 8, 12):
        decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=GREEDY)
        written = []
        for start in range(0, len(PROMPTS), batch):
            rows = range(start, min(start + batch, len(PROMPTS)))
            prompts = [PROMPTS[row] for row in rows]
            written += decoder.generate(prompts, max_new_tokens=ANSWER, seeds=list(rows))
        tokens, rounds = predicted_tau(records, "greedy", length)
        for row, answer in enumerate(written):
            table = records[row].token_acceptance["greedy"]
            assert np.array_equal(table, alone[row].token_acceptance["greedy"])
            counted = [entry.emitted for entry in answer.rounds]
            assert walked(table, length) == counted
            assert rounds[row] == len(counted) and tokens[row] == sum(counted)
        assert length == 1 or sum(rounds) < predicted_tau(records, "greedy", 1)[1].sum()


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft"])
def test_the_expected_rounds_are_those_of_sampled_decoding(rule):
    """300 answers of ten tokens: predicted on plain answers, counted in others that were drafted."""
    target, draft = endless_pair()
    ParallelDrafting(10).write_to(draft.config)
    prompts, new, sampling = [[5, 6, 7]] * 300, 10, Sampling()
    records = score(target, draft, answered(target, prompts, sampling, new), sampling, depths=4)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4, sampling=sampling, rule=rule)
    written = decoder.generate(prompts, max_new_tokens=new, seeds=list(range(1000, 1300)))
    counted = np.array([len(answer.rounds) for answer in written], dtype=float)
    predicted = predicted_tau(records, rule, 4)[1]
    error = np.sqrt(counted.var() / 300 + predicted.var() / 300)
    assert abs(counted.mean() - predicted.mean()) < 4 * error


def test_alpha_by_depth_and_start():
    target, draft = taught_pair()
    example = answered(target, PROMPTS[:1])[0]
    record = score(target, draft, [example], Sampling(), depths=3)[0]
    depths = record.alpha_by_depth["sampled"]
    assert depths.shape == (ANSWER, 3) and np.array_equal(depths[:, 0], record.alpha["sampled"])
    assert np.isnan(depths[-1, 1:]).all() and np.isnan(depths[-2, 2]) and not np.isnan(depths[:-2]).any()
    start, depth = 4, 2
    text = [*example.prompt_ids, *example.answer_ids[:start]]
    behind = [*example.prompt_ids, *example.answer_ids[: start + depth]]
    with torch.no_grad():
        p = target.logits(target.hidden_states(torch.tensor([behind]))[0, -1]).softmax(-1)
    q = guesses(draft, text, 3)[depth].softmax(-1)
    assert depths[start, depth] == pytest.approx(float(torch.minimum(p, q).sum()), abs=1e-4)
    token = example.answer_ids[start + depth]
    chance = min(1.0, float(q[token] / p[token]))
    assert record.token_acceptance["sampled"][start, depth] == pytest.approx(chance, abs=1e-4)
    assert record.token_acceptance["sampled"][-1, 1] == 0


def test_chances_of_an_ordinary_draft_depend_on_the_token_only():
    table = by_start(np.array([0.5, 0.25, 1.0]), 2)
    assert table.tolist() == [[0.5, 0.25], [0.25, 1.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="rounds of 2 tokens, asked about 3"):
        by_start(np.ones((5, 2)), 3)


def test_rounds_by_hand():
    """Five tokens, the first from the prompt's pass. Token 1's round keeps one token with chance 1/2."""
    table = np.zeros((5, 2))
    table[1] = [0.5, 1.0]
    # Starts at 1: kept nothing (1/2) -> 2, kept both (1/2) -> 4. From 2: -> 3 -> 4. So 1 + 1/2 + 1/2 + 1.
    assert expected_rounds(table, 2) == pytest.approx(3.0)
    # With one draft token: kept nothing (1/2) -> 2, kept it (1/2) -> 3: 1 + 1/2 + 1 + 1.
    assert expected_rounds(table, 1) == pytest.approx(3.5)


def test_an_ordinary_draft_scores_as_before():
    target, draft = make_model(layers=4), make_model(layers=2, seed=3)
    examples = answered(target, PROMPTS[:3])
    one, many = (score(target, draft, examples, Sampling(), depths=depths) for depths in (1, 8))
    for left, right in zip(one, many, strict=True):
        assert left.token_acceptance["sampled"].shape == (ANSWER,) and not left.alpha_by_depth
        assert np.array_equal(left.token_acceptance["sampled"], right.token_acceptance["sampled"])
    assert acceptance.alpha_sums(one, "sampled")[0].shape == (3,)
