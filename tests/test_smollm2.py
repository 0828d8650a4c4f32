"""The real target, SmolLM2-135M-Instruct: exactness on real prompts, identity, and prediction against measurement."""

from __future__ import annotations

import pytest
from tiny_runs import example

from specdistill.data import load_prompts
from specdistill.data.prompts import encode_all, spread_over_categories
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.evaluation.acceptance import alpha_sums, predicted_tau, score
from specdistill.evaluation.latency import first_difference
from specdistill.evaluation.statistics import ratio
from specdistill.models import cut_draft

pytestmark = pytest.mark.smollm2

NEW, GREEDY = 24, Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def prompts(smollm2):
    chosen = spread_over_categories(load_prompts("builtin:heldout"), 64)
    return chosen, encode_all(chosen, smollm2.tokenizer, 4096)


@pytest.fixture(scope="module")
def draft(smollm2):
    """Most of the target's own layers: right often, but by no means always."""
    return cut_draft(smollm2, [layer for layer in range(30) if layer not in (9, 14, 19)])


@pytest.fixture(scope="module")
def plain(smollm2, prompts):
    _, encoded = prompts
    generations = []
    for start in range(0, 64, 8):
        generations += generate_plain(
            smollm2, encoded[start : start + 8], sampling=GREEDY, max_new_tokens=NEW, seeds=list(range(8))
        )
    return generations


@pytest.fixture(scope="module")
def fast(smollm2, draft, prompts):
    """Eight prompts at each draft length from 1 to 8."""
    _, encoded = prompts
    generations = []
    for gamma in range(1, 9):
        decoder = SpeculativeDecoder(smollm2, draft, num_draft_tokens=gamma, sampling=GREEDY)
        chunk = encoded[8 * gamma - 8 : 8 * gamma]
        generations += decoder.generate(chunk, max_new_tokens=NEW, seeds=list(range(8)))
    return generations


def test_greedy_output_is_the_targets_own_on_64_real_prompts(smollm2, prompts, plain, fast):
    chosen, encoded = prompts
    assert len(chosen) == 64
    differences = [first_difference(smollm2, *answers) for answers in zip(chosen, encoded, plain, fast, strict=True)]
    assert not [difference for difference in differences if difference], differences
    accepted = sum(entry.accepted for result in fast for entry in result.rounds)
    proposed = sum(entry.proposed for result in fast for entry in result.rounds)
    assert 0.1 < accepted / proposed < 0.95, "a useless or perfect draft would prove little"


def test_prediction_from_one_pass_is_what_the_decoder_did(smollm2, draft, prompts, plain, fast):
    chosen, encoded = prompts
    answers = [
        example(ids, generation.token_ids, name=prompt.id)
        for prompt, ids, generation in zip(chosen, encoded, plain, strict=True)
    ]
    records = score(smollm2, draft, answers, GREEDY)
    for gamma in range(1, 9):
        rows = slice(8 * gamma - 8, 8 * gamma)
        _, rounds = predicted_tau(records[rows], "greedy", gamma)
        assert rounds.tolist() == [len(result.rounds) for result in fast[rows]]


def test_a_draft_equal_to_the_target_scores_one_and_is_never_rejected(smollm2, prompts):
    chosen, encoded = prompts
    for sampling in (GREEDY, Sampling()):
        decoder = SpeculativeDecoder(smollm2, smollm2, num_draft_tokens=4, sampling=sampling)
        results = decoder.generate(encoded[:4], max_new_tokens=12, seeds=[0, 1, 2, 3])
        assert all(entry.accepted == entry.proposed for result in results for entry in result.rounds)
        answers = [
            example(ids, generation.token_ids, name=prompt.id)
            for prompt, ids, generation in zip(chosen, encoded, results, strict=False)
        ]
        records = score(smollm2, smollm2, answers, sampling)
        for rule in ("greedy", "sampled") if not sampling.greedy else ("greedy", "sampled", "argmax_draft"):
            # Sums of 49152 float32 probabilities, each wrong by a rounding of its logit, miss 1 by about 1e-5.
            assert ratio(*alpha_sums(records, rule)).mean == pytest.approx(1, abs=5e-5)


def test_transformers_assisted_generation_agrees(smollm2, draft, prompts, plain):
    import torch

    _, encoded = prompts
    ids = torch.tensor([encoded[0]])
    theirs = smollm2.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        assistant_model=draft.model,
        max_new_tokens=NEW,
        do_sample=False,
    )
    assert theirs[0, ids.shape[1] :].tolist() == plain[0].token_ids
