"""Long answers: scored and labelled in blocks, with the numbers of one pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_models import make_model, perturbed
from tiny_runs import annotate_config, example, target_states

from specdistill.data import soft_labels
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Sampling
from specdistill.decoding.proof import prove
from specdistill.distill.answers.label_writer import label_rows
from specdistill.distill.cutting.init_draft import most_used_ids
from specdistill.distill.cutting.layer_search import LayerScorer
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.distill.training.heldout import HeldOutLabels
from specdistill.evaluation.acceptance import answer_hidden_states, score, score_draft
from specdistill.evaluation.latency import first_difference
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.models import LanguageModel
from specdistill.progress import Quiet

CONTEXT = 4400


def ids(count, seed):
    return torch.randint(5, 65, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def long_examples():
    """A long prompt, a long answer, and a short one of both."""
    return [
        example(ids(4000, 1), ids(30, 2), name="a"),
        example(ids(20, 3), ids(2500, 4), name="b"),
        example(ids(9, 5), ids(7, 6), name="c"),
    ]


@pytest.fixture
def watched(monkeypatch):
    """Rows and tokens of every pass without a cache, and the most logits that were asked for at once."""
    seen = {"passes": [], "logits": 0}
    hidden_states, own_logits = LanguageModel.hidden_states, LanguageModel.own_logits

    def passing(self, input_ids, attention_mask=None):
        seen["passes"].append(tuple(input_ids.shape))
        return hidden_states(self, input_ids, attention_mask)

    def counting(self, hidden):
        logits = own_logits(self, hidden)
        seen["logits"] = max(seen["logits"], logits.numel())
        return logits

    monkeypatch.setattr(LanguageModel, "hidden_states", passing)
    monkeypatch.setattr(LanguageModel, "own_logits", counting)
    return seen


def proven(watched, model):
    """The model after its proof, whose passes are not counted."""
    prove(model)
    watched["passes"].clear()
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_states_of_long_sequences_equal_one_plain_pass_each(family):
    model = make_model(family, layers=2, context=CONTEXT)
    for sequence, states in zip(long_examples(), answer_hidden_states(model, long_examples()), strict=True):
        text = torch.tensor([[*sequence.prompt_ids, *sequence.answer_ids]])
        with torch.inference_mode():
            wanted = model.hidden_states(text)[0, len(sequence.prompt_ids) - 1 : -1]
        torch.testing.assert_close(states, wanted, rtol=1e-3, atol=1e-3)


def test_long_sequences_do_not_share_one_pass(watched):
    model = proven(watched, make_model(layers=1, context=CONTEXT))
    answer_hidden_states(model, [example(ids(1500, row), ids(5, row), name=str(row)) for row in range(16)])
    assert watched["passes"] == [(10, 1505), (6, 1505)]
    watched["passes"].clear()
    answer_hidden_states(model, long_examples()[:2])
    assert watched["passes"] == []


def test_short_sequences_share_the_pass_that_they_always_shared(watched):
    model = make_model(layers=1)
    answer_hidden_states(model, [example(ids(50, row), ids(20, row), name=str(row)) for row in range(8)])
    assert watched["passes"] == [(8, 70)]


def test_a_sharded_target_makes_one_pass_however_long(watched):
    """Every pass of a sharded target is a collective: ranks with other lengths would wait for ever."""
    model = make_model(layers=1, context=CONTEXT)
    states = TargetStates(model, lockstep=True).hidden_states(long_examples())
    assert watched["passes"] == [(3, 4030)]
    for one, other in zip(states, target_states(model, long_examples()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_long_training_batch_gets_no_mask_of_all_pairs(monkeypatch):
    model = make_model(layers=1, context=CONTEXT)
    masks, original = [], model.base_model.forward
    monkeypatch.setattr(
        model.base_model, "forward", lambda **named: masks.append(named["attention_mask"]) or original(**named)
    )
    padded = torch.zeros(2, 2100, dtype=torch.int64)
    mask = torch.ones_like(padded)
    mask[1, 50:] = 0
    with torch.inference_mode():
        long = model.hidden_states(padded, mask)
        short = model.hidden_states(padded[1:, :50], mask[1:, :50])
    assert masks[0] is None and masks[1] is not None
    torch.testing.assert_close(long[1, :50], short[0], rtol=1e-3, atol=1e-3)


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_the_logits_of_a_long_answer_are_scored_in_blocks(watched, monkeypatch, temperature):
    target, sampling = make_model(layers=1, context=CONTEXT), Sampling(temperature=temperature)
    draft, sequences = perturbed(target, 0.3), long_examples()
    whole = score(target, draft, sequences, sampling), score_draft(draft, sequences, greedy=True)
    watched["logits"] = 0
    monkeypatch.setattr("specdistill.evaluation.logit_blocks._LOGITS", 65 * 100)
    blocks = score(target, draft, sequences, sampling), score_draft(draft, sequences, greedy=True)
    assert watched["logits"] == 65 * 100
    for records, others in zip(whole, blocks, strict=True):
        for record, other in zip(records, others, strict=True):
            same(record.alpha, other.alpha)
            same(record.token_acceptance, other.token_acceptance)
            same(record.alpha_at_1, other.alpha_at_1)
            np.testing.assert_allclose(record.fkl, other.fkl, rtol=1e-4, atol=1e-5)


def test_an_answer_of_usual_length_is_one_block():
    assert list(logit_blocks(torch.zeros(400, 8), 150_000)) == [slice(0, 447)]
    assert list(logit_blocks(torch.zeros(0, 8), 150_000)) == [slice(0, 447)]
    assert [block.start for block in logit_blocks(torch.zeros(900, 8), 150_000)] == [0, 447, 894]


@pytest.mark.parametrize("settings", [{"top_k": 8}, {"labels": "sampled", "draws": 12, "top_k": None}], ids=str)
def test_a_long_answer_is_labelled_in_blocks_with_the_same_labels(watched, monkeypatch, tmp_path, settings):
    target = make_model(layers=1, context=CONTEXT)
    given = {name: value for name, value in settings.items() if value is not None}
    config = annotate_config(tmp_path, tmp_path / "labels", **given)
    rows = [
        {"prompt_id": one.prompt_id, "prompt_ids": one.prompt_ids, "answer_ids": one.answer_ids}
        | {"provenance": one.provenance}
        for one in long_examples()
    ]
    whole = label_rows(config, target, rows)
    watched["logits"] = 0
    monkeypatch.setattr("specdistill.evaluation.logit_blocks._LOGITS", 65 * 100)
    blocks = label_rows(config, target, rows)
    assert watched["logits"] == 65 * 100
    for one, other in zip(whole, blocks, strict=True):
        assert list(one["label_ids"]) == list(other["label_ids"])
        assert list(one["label_counts"]) == list(other["label_counts"])
        np.testing.assert_allclose(one["label_log_probs"], other["label_log_probs"], atol=2e-3)


def test_held_out_labels_score_a_long_answer_in_blocks(watched, monkeypatch):
    target = make_model(layers=1, context=CONTEXT)
    draft, sequences = perturbed(target, 0.3), long_examples()
    with torch.no_grad():
        log_probs = [target.logits(states).log_softmax(-1) for states in answer_hidden_states(target, sequences)]

    class Labels:
        def labels_of(self, asked):
            return [soft_labels.likeliest(one, 8) for one in log_probs]

    scorer = HeldOutLabels(Labels(), sequences, 1.0, False, "sampled")
    whole = scorer.score(draft)
    watched["logits"] = 0
    monkeypatch.setattr("specdistill.evaluation.logit_blocks._LOGITS", 65 * 100)
    for record, other in zip(whole, scorer.score(draft), strict=True):
        same(record.alpha, other.alpha)
        np.testing.assert_allclose(record.fkl, other.fkl, rtol=1e-4, atol=1e-5)
    assert watched["logits"] == 65 * 100


def test_the_ids_of_a_trimmed_head_are_counted_in_blocks(watched, monkeypatch):
    target = make_model(layers=1, context=CONTEXT)
    whole, share = most_used_ids(target, long_examples(), 20, Quiet())
    watched["logits"] = 0
    monkeypatch.setattr("specdistill.evaluation.logit_blocks._LOGITS", 65 * 100)
    blocks, other = most_used_ids(target, long_examples(), 20, Quiet())
    assert whole.tolist() == blocks.tolist() and share == pytest.approx(other)
    assert watched["logits"] == 65 * 100


def test_the_layer_search_reads_long_prompts_in_passes(watched):
    """Layers that a candidate leaves out keep their numbers, so the cache needs a place for each of them."""
    target = proven(watched, make_model(layers=3, context=CONTEXT))
    answers = [example(ids(4000, row), ids(6, row), name=str(row)) for row in range(2)]
    scorer = LayerScorer(target, target, answers)
    assert scorer([0, 1, 2]) == pytest.approx(1, abs=1e-4)
    assert 0 < scorer([0, 2]) < 1
    assert watched["passes"] == []


def test_a_difference_behind_a_long_prompt_is_judged_in_passes(watched):
    target = proven(watched, make_model(layers=1, context=CONTEXT))
    prompt = ids(4000, 7)
    found = first_difference(target, Prompt("p", ()), prompt, Generation([7, 8]), Generation([7, 9]))
    with torch.inference_mode():
        best = target.logits(target.base_model(torch.tensor([[*prompt, 7]])).last_hidden_state[0, -1]).topk(2).values
    assert found is not None and found.position == 1
    assert found.logit_gap == pytest.approx(float(best[0] - best[1]), abs=1e-3)
    assert watched["passes"] == []
