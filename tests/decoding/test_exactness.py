"""Speculative output is the target's own output, whatever the family, draft, draft length or batch."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, make_model, perturbed

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.errors import ConfigError, DataError

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], [30, 31, 32, 33, 34], [9]]
NEW = 40


def plain(model, prompts=PROMPTS, sampling=GREEDY, new=NEW, seeds=None):
    return [
        generate_plain(model, [prompt], sampling=sampling, max_new_tokens=new, seeds=[seed])[0]
        for prompt, seed in zip(prompts, seeds or range(len(prompts)), strict=True)
    ]


def speculative(target, draft, gamma, prompts=PROMPTS, sampling=GREEDY, new=NEW, **settings):
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=gamma, sampling=sampling, **settings)
    return decoder.generate(prompts, max_new_tokens=new, seeds=list(range(len(prompts))))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers_and_plain_and_speculative(family):
    target = make_model(family)
    draft = perturbed(target, 0.1 if family == "gpt2" else 0.02)
    wanted = [result.token_ids for result in plain(target)]
    for prompt, ids in zip(PROMPTS, wanted, strict=True):
        theirs = target.model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False)
        assert theirs[0, len(prompt) :].tolist() == ids
    assert len({token for ids in wanted for token in ids}) > 5, "a constant output would prove nothing"
    for gamma in (1, 3, 8):
        batched = speculative(target, draft, gamma)
        assert [result.token_ids for result in batched] == wanted
        accepted = [entry.accepted for result in batched for entry in result.rounds]
        assert 0 in accepted and max(accepted) == gamma, "the draft should be neither useless nor perfect"


@pytest.mark.parametrize("gamma", range(1, 9))
def test_every_draft_length_alone_and_in_a_batch(gamma):
    target, draft = make_model(layers=4), make_model(layers=2, seed=3)
    wanted = [result.token_ids for result in plain(target)]
    assert [result.token_ids for result in speculative(target, draft, gamma)] == wanted
    for prompt, ids in zip(PROMPTS, wanted, strict=True):
        assert speculative(target, draft, gamma, [prompt])[0].token_ids == ids


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(temperature=0.7, top_k=10, top_p=0.9)])
@pytest.mark.parametrize("gamma", [1, 4, 8])
def test_a_draft_equal_to_its_target_is_never_rejected(gamma, sampling):
    target = make_model()
    results = speculative(target, target, gamma, sampling=sampling)
    for result in results:
        assert all(entry.accepted == entry.proposed for entry in result.rounds)
        assert all(entry.emitted == gamma + 1 for entry in result.rounds[:-1])


def test_trimmed_head_proposes_kept_ids_only_and_stays_exact():
    target, draft = make_model(), perturbed(make_model(), 0.02)
    draft.kept_ids = torch.tensor([1, *range(5, 65, 2)])
    wanted = [result.token_ids for result in plain(target)]
    for gamma in (1, 4):
        results = speculative(target, draft, gamma)
        assert [result.token_ids for result in results] == wanted
        proposed = {
            token for result in results for token, own in zip(result.token_ids, result.from_draft, strict=True) if own
        }
        assert proposed and proposed <= set(draft.kept_ids.tolist())


def test_stops_at_any_end_of_sequence_id_also_inside_an_accepted_run():
    target = make_model()
    free = plain(target, [PROMPTS[0]])[0].token_ids
    stop = free[6]
    target.model.generation_config.eos_token_id = [1, stop]
    assert target.eos_token_ids == {1, stop}
    wanted = free[: free.index(stop) + 1]
    for gamma in (1, 4, 8):
        result = speculative(target, target, gamma, [PROMPTS[0]])[0]
        assert result.token_ids == wanted and result.finish_reason == "eos"
        assert sum(entry.emitted for entry in result.rounds) == len(wanted) - 1


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_never_exceeds_the_limit_nor_proposes_what_could_not_be_kept(new):
    target = make_model()
    for gamma in (1, 4, 8):
        for result in speculative(target, target, gamma, new=new):
            assert len(result.token_ids) == new
            assert all(entry.emitted == entry.accepted + 1 for entry in result.rounds)


def test_same_seed_same_tokens_alone_and_in_a_batch():
    target, draft = make_model(layers=4), make_model(layers=2, seed=3)
    sampling = Sampling(temperature=0.9)
    together = speculative(target, draft, 4, sampling=sampling)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4, sampling=sampling)
    for row, prompt in enumerate(PROMPTS):
        alone = decoder.generate([prompt], max_new_tokens=NEW, seeds=[row])[0]
        assert alone.token_ids == together[row].token_ids
    many = generate_plain(target, PROMPTS, sampling=sampling, max_new_tokens=NEW, seeds=[0, 1, 2, 3])
    assert [result.token_ids for result in many] == [result.token_ids for result in plain(target, sampling=sampling)]


def test_padded_vocabulary_is_never_sampled():
    target = make_model(vocab_size=80)
    assert target.vocab_size == 65
    with torch.no_grad():
        target.head_weight[65:] = 50 * target.head_weight[65:].abs()
    for result in speculative(target, target, 3, sampling=Sampling(temperature=2.0)):
        assert max(result.token_ids) < 65


def test_uses_the_whole_context_and_refuses_more():
    target = make_model("gpt2", context=32)
    prompt = list(range(5, 17))
    wanted = plain(target, [prompt], new=20)[0].token_ids
    assert speculative(target, perturbed(target, 0.05), 8, [prompt], new=20)[0].token_ids == wanted
    with pytest.raises(DataError, match="exceeds the context of 32"):
        speculative(target, target, 4, [prompt], new=21)
    with pytest.raises(DataError, match="prompt 2 is empty"):
        speculative(target, target, 4, [prompt, []], new=4)


def test_refuses_settings_that_contradict_each_other():
    model = make_model()
    with pytest.raises(ConfigError, match="at least 1"):
        SpeculativeDecoder(model, model, num_draft_tokens=0, sampling=GREEDY)
    with pytest.raises(ConfigError, match="does not go with temperature"):
        SpeculativeDecoder(model, model, num_draft_tokens=1, sampling=GREEDY, rule="sampled")


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9), Sampling(top_k=5, min_p=0.02)])
def test_a_seed_writes_the_same_answer_with_any_argmax_draft_and_without_one(sampling):
    target = make_model()
    wanted = [result.token_ids for result in plain(target, sampling=sampling)]
    for draft, gamma in ((perturbed(target, 0.02), 3), (make_model(layers=1, seed=3), 5)):
        results = speculative(target, draft, gamma, sampling=sampling, rule="argmax_draft")
        assert [result.token_ids for result in results] == wanted
