"""Sources of examples: pools, on-policy answers, mixtures, phases, and answers that both models write."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tiny_models import make_model, make_tokenizer, perturbed
from tiny_runs import example, on_policy, skd_source

from specdistill.data import Example, Prompt, Provenance
from specdistill.data.texts import Piece
from specdistill.decoding import Generation, Round, Sampling, generate_plain
from specdistill.distill.answers import given, shards
from specdistill.distill.answers.text_blocks import text_blocks
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.skd import Rejections
from specdistill.distill.sequences.sources import Mixture, Phases
from specdistill.errors import DataError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.progress import Quiet

PROMPTS = [
    Prompt(str(index), ({"role": "user", "content": f"w{index} w{index + 1}"},), answer=f"w{index}")
    for index in range(6)
]
GREEDY = Sampling(temperature=0.0)
ENCODED = [[3, 5 + index, 6 + index, 4] for index in range(6)]


POOL = [example((5,), (6,), name=str(index)) for index in range(10)]


def skd_batch(target, draft, top_k, sampling=None, **settings):
    return skd_source(target, draft, PROMPTS, ENCODED, sampling, top_k=top_k, **settings).next_batch(1)


def test_pool_repeats_every_sequence_once_an_epoch_in_a_seeded_order():
    pool = Pool(POOL, 4, seed=3)
    seen = [one for step in range(5) for one in pool.next_batch(step)]
    assert sorted(one.prompt_id for one in seen) == sorted([*map(str, range(10))] * 2)
    other = Pool(POOL, 4, seed=3)
    assert [other.next_batch(1), other.next_batch(2)] == [seen[:4], seen[4:8]]


def test_mixture_and_phases_take_from_the_right_source():
    class Named:
        def __init__(self, name):
            self.name = name

        def next_batch(self, step):
            return [self.name]

    for lmbda, share in ((0.0, 0), (1.0, 200), (0.3, 60)):
        mixture = Mixture(Named("own"), Named("fixed"), lmbda, seed=0)
        own = sum(mixture.next_batch(step) == ["own"] for step in range(200))
        assert own == share if lmbda in (0, 1) else abs(own - share) < 25
    phases = Phases(Named("first"), Named("then"), 2)
    assert [phases.next_batch(step)[0] for step in (1, 2, 3)] == ["first", "first", "then"]


def test_on_policy_answers_are_the_drafts_own_and_change_with_it():
    draft = make_model()
    batch = on_policy(draft, PROMPTS, ENCODED, GREEDY).next_batch(1)
    assert {one.prompt_id for one in batch} == {prompt.id for prompt in PROMPTS}
    for one in batch:
        wanted = generate_plain(draft, [list(one.prompt_ids)], sampling=GREEDY, max_new_tokens=12, seeds=[0])
        assert list(one.answer_ids) == wanted[0].token_ids and set(one.provenance) == {Provenance.DRAFT}
    with torch.no_grad():
        draft.head_weight.copy_(draft.head_weight.flip(0))
    draft.weights_changed()
    changed = on_policy(draft, PROMPTS, ENCODED, GREEDY).next_batch(1)
    assert [one.answer_ids for one in changed] != [one.answer_ids for one in batch]


class Engine:
    def __init__(self, draft):
        self.draft, self.pushes = draft, []

    def push(self, weights):
        self.pushes.append(dict(weights))

    def write(self, prompts, sampling, max_new_tokens, seeds):
        return generate_plain(self.draft, prompts, sampling=sampling, max_new_tokens=max_new_tokens, seeds=seeds)


@pytest.mark.parametrize(("every", "pushes"), [(1, 6), (2, 3), (4, 2)])
def test_an_engine_gets_new_weights_every_few_steps_and_writes_the_same(every, pushes):
    draft = make_model()
    engine = Engine(draft)
    own = on_policy(draft, PROMPTS, ENCODED, max_new_tokens=8, batch_size=2)
    served = on_policy(draft, PROMPTS, ENCODED, max_new_tokens=8, batch_size=2, engine=engine, push_every=every)
    for step in range(3, 9):
        assert served.next_batch(step) == own.next_batch(step)
    assert len(engine.pushes) == pushes
    assert set(engine.pushes[0]) == {name for name, _ in draft.model.named_parameters()}


def test_generating_restores_training_mode():
    draft = make_model()
    draft.model.train()
    on_policy(draft, PROMPTS, ENCODED, max_new_tokens=4, batch_size=2).next_batch(1)
    assert draft.model.training


def test_given_answers_end_with_eos_and_are_required():
    tokenizer = make_tokenizer()
    answers, _ = given.given_answers(PROMPTS, ENCODED, tokenizer, 1, 8)
    assert answers[2].answer_ids == (7, 1) and set(answers[2].provenance) == {Provenance.GIVEN}
    assert given.given_answers(PROMPTS, ENCODED, tokenizer, 1, 1)[0][0].answer_ids == (5,)
    bare = [
        Prompt("x", PROMPTS[0].messages, place="f, line 2", fields=("prompt", "reply")),
        Prompt("y", PROMPTS[0].messages, fields=("prompt", "id")),
    ]
    message = (
        '2 of 4 prompts have no field "answer" (the first is f, line 2; the fields there are prompt, reply, id), which '
        "sft needs"
    )
    with pytest.raises(DataError, match=re.escape(message)):
        given.check_answers([PROMPTS[0], *bare, PROMPTS[1]], "sft")
    with pytest.raises(DataError, match=re.escape("1 of 1 prompts have no field \"answer\" (the first is prompt 'x')")):
        given.check_answers([Prompt("x", PROMPTS[0].messages)], "sft")


def test_raw_text_is_cut_into_blocks_that_cover_every_token_once():
    tokenizer = make_tokenizer()
    blocks = list(text_blocks([Piece("w1 w2 w3"), Piece("w4 w5")], tokenizer, 1, 3))
    assert [(block.prompt_ids, block.answer_ids) for block in blocks] == [((6,), (7, 8, 1)), ((1,), (9, 10, 1))]
    assert set(blocks[0].provenance) == {Provenance.GIVEN}
    with pytest.raises(DataError, match="fewer than two tokens"):
        list(text_blocks([Piece("")], tokenizer, 1, 3))


def test_target_rollouts_are_saved_reloaded_and_filtered_by_prompt(tmp_path):
    target = make_model()
    settings = shards.RolloutSettings(Sampling(), 9, 0, batch_size=4)
    shards.sample_rollouts(target, PROMPTS, ENCODED, settings, copies=3, directory=tmp_path, progress=Quiet())
    rollouts = shards.load_rollouts(tmp_path, PROMPTS, ENCODED, 65)
    assert len(rollouts) == 18 and len({(one.prompt_id, one.answer_ids) for one in rollouts}) > 12
    row = shards.read_rollouts(tmp_path)[4]
    alone = generate_plain(target, [row["prompt_ids"]], sampling=Sampling(), max_new_tokens=9, seeds=[row["seed"]])
    assert alone[0].token_ids == row["answer_ids"]
    some = shards.load_rollouts(tmp_path, PROMPTS[:2], ENCODED[:2], 65)
    assert {one.prompt_id for one in some} == {"0", "1"} and len(some) == 6
    assert len(shards.load_rollouts(tmp_path, PROMPTS[:2], ENCODED[:2], 65, copies=1)) == 2
    with pytest.raises(DataError, match="answers none of the training prompts"):
        shards.load_rollouts(tmp_path, PROMPTS[:1], [[9, 9]], 65)
    with pytest.raises(DataError, match="another tokenizer"):
        shards.load_rollouts(tmp_path, PROMPTS, ENCODED, 6)


def all_sources(draft):
    def own(seed):
        return on_policy(draft, PROMPTS, ENCODED, max_new_tokens=6, batch_size=4, seed=seed)

    def fixed():
        return Pool(POOL, 3, 0)

    return {
        "pool": fixed(),
        "on-policy": own(1),
        "mixture": Mixture(own(1), fixed(), 0.5, 2),
        "phases": Phases(fixed(), own(1), 3),
        "skd": skd_source(make_model(), draft, PROMPTS, ENCODED, max_new_tokens=6, batch_size=4, seed=3),
    }


@pytest.mark.parametrize("name", ["pool", "on-policy", "mixture", "phases", "skd"])
def test_a_source_goes_on_where_its_state_was_taken(name):
    draft = make_model(seed=4)
    one, other = all_sources(draft)[name], all_sources(draft)[name]
    for step in range(1, 6):
        one.next_batch(step)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for step in range(6, 12):
        assert one.next_batch(step) == other.next_batch(step)


def test_skd_hands_over_the_targets_hidden_states_of_its_check():
    """No second pass of the target: what the check computed is what a fresh pass over the answer gives."""
    target, draft = make_model(), perturbed(make_model(), 0.02)
    for one in skd_batch(target, draft, 5):
        fresh = Example(one.prompt_id, one.prompt_ids, one.answer_ids, one.provenance)
        wanted = answer_hidden_states(target, [fresh])
        assert one.target_hidden.shape == (len(one.answer_ids), 32)
        torch.testing.assert_close(one.target_hidden, wanted[0], rtol=1e-4, atol=1e-4)


def test_skd_rejections_are_counted_by_position():
    counted = Rejections(3)
    generation = Generation()
    generation.rounds = [Round(3, 0, 1), Round(3, 2, 3), Round(3, 3, 3), Round(2, 2, 2)]
    counted.count(generation)
    assert counted.tested == [4, 3, 2] and counted.rejected == [1, 0, 1]
    assert counted.rates() == {"skd_rejection_rate": 2 / 9, "skd_rejection_by_position": [0.25, 0.0, 0.5]}
    assert Rejections(2).rates() == {"skd_rejection_rate": None, "skd_rejection_by_position": [None, None]}


def test_skd_rejects_less_of_a_draft_that_agrees_more():
    rates = []
    for noise in (0.01, 0.3):
        draft = perturbed(make_model(), noise)
        settings = {"top_k": 3, "num_draft_tokens": 4, "max_new_tokens": 24}
        source = skd_source(make_model(), draft, PROMPTS, ENCODED, **settings)
        source.next_batch(1)
        rates.append(source.measurements(reset=True)["skd_rejection_rate"])
        assert source.measurements()["skd_rejection_rate"] is None
    assert rates[0] < rates[1]


def test_skd_with_the_whole_vocabulary_is_on_policy():
    """K -> vocabulary: every token is the draft's, and the answers are those of plain decoding with the draft."""
    target, draft = make_model(), make_model(seed=4)
    for one in skd_batch(target, draft, 65, GREEDY):
        wanted = generate_plain(draft, [list(one.prompt_ids)], sampling=GREEDY, max_new_tokens=20, seeds=[0])
        assert list(one.answer_ids) == wanted[0].token_ids
        assert set(one.provenance) == {Provenance.DRAFT}


def test_skd_with_one_and_a_greedy_target_is_the_targets_own_answer():
    target, draft = make_model(), perturbed(make_model(), 0.02)
    writers = set()
    for one in skd_batch(target, draft, 1, GREEDY):
        wanted = generate_plain(target, [list(one.prompt_ids)], sampling=GREEDY, max_new_tokens=20, seeds=[0])
        assert list(one.answer_ids) == wanted[0].token_ids
        writers |= set(one.provenance)
    assert writers == {Provenance.DRAFT, Provenance.TARGET}


@pytest.mark.parametrize("top_k", [1, 5, 25])
def test_skd_keeps_only_draft_tokens_in_the_targets_top_k(top_k):
    """Exactly the emitted token was tested, against the raw logits: filters and temperature play no part."""
    target, draft = make_model(), make_model(seed=4)
    replaced = 0
    for one in skd_batch(target, draft, top_k, Sampling(temperature=0.7, top_k=3, top_p=0.5)):
        ids = torch.tensor([one.prompt_ids + one.answer_ids])
        with torch.no_grad():
            logits = target.logits(target.hidden_states(ids))[0, len(one.prompt_ids) - 1 : -1]
        best = logits.topk(top_k).indices
        for position, (token, writer) in enumerate(zip(one.answer_ids, one.provenance, strict=True)):
            if writer == Provenance.DRAFT:
                assert token in best[position]
            else:
                replaced += 1
                assert token in logits[position].topk(3).indices, "a replacement follows the target's own filters"
    assert replaced > 0


def test_skd_stops_at_the_end_of_sequence_and_at_the_limit():
    target, draft = make_model(), perturbed(make_model(), 0.02)
    for one in skd_batch(target, draft, 10, max_new_tokens=7):
        assert len(one.answer_ids) == 7 or one.answer_ids[-1] == 1
        assert 1 not in one.answer_ids[:-1]
