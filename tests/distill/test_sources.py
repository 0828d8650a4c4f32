"""Where sequences come from: pools, on-policy answers, mixtures, phases, and answers that both models write."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_model, make_tokenizer, perturbed

from specdistill.data import Prompt, Provenance, Sequence
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill import rollouts
from specdistill.distill.skd import Skd
from specdistill.errors import DataError
from specdistill.models import ModelPair
from specdistill.progress import Quiet

PROMPTS = [
    Prompt(str(index), ({"role": "user", "content": f"w{index} w{index + 1}"},), answer=f"w{index}")
    for index in range(6)
]
ENCODED = [[3, 5 + index, 6 + index, 4] for index in range(6)]


def skd(pair, top_k, sampling=None, seed=0, batch_size=6, **settings):
    defaults = {"num_draft_tokens": 3, "max_new_tokens": 20}
    sampling = sampling or Sampling()
    return Skd(
        pair, PROMPTS, ENCODED, sampling, top_k=top_k, batch_size=batch_size, seed=seed, **(defaults | settings)
    ).next_batch(1)


def test_pool_repeats_every_sequence_once_an_epoch_in_a_seeded_order():
    sequences = [Sequence(str(index), (5,), (6,), (2,)) for index in range(10)]
    pool = rollouts.Pool(sequences, 4, seed=3)
    seen = [each for step in range(5) for each in pool.next_batch(step)]
    assert sorted(each.prompt_id for each in seen) == sorted([*map(str, range(10))] * 2)
    other = rollouts.Pool(sequences, 4, seed=3)
    assert [other.next_batch(1), other.next_batch(2)] == [seen[:4], seen[4:8]]


def test_mixture_and_phases_take_from_the_right_source():
    class Named:
        def __init__(self, name):
            self.name = name

        def next_batch(self, step):
            return [self.name]

    for lmbda, share in ((0.0, 0), (1.0, 200), (0.3, 60)):
        mixture = rollouts.Mixture(Named("own"), Named("fixed"), lmbda, seed=0)
        own = sum(mixture.next_batch(step) == ["own"] for step in range(200))
        assert own == share if lmbda in (0, 1) else abs(own - share) < 25
    phases = rollouts.Phases(Named("first"), Named("then"), 2)
    assert [phases.next_batch(step)[0] for step in (1, 2, 3)] == ["first", "first", "then"]


def test_on_policy_answers_are_the_drafts_own_and_change_with_it():
    draft = make_model()
    settings = (draft, PROMPTS, ENCODED, Sampling(temperature=0.0), 12, 6, 0)
    batch = rollouts.OnPolicy(*settings).next_batch(1)
    assert {each.prompt_id for each in batch} == {prompt.id for prompt in PROMPTS}
    for each in batch:
        wanted = generate_plain(
            draft, [list(each.prompt_ids)], sampling=Sampling(temperature=0.0), max_new_tokens=12, seeds=[0]
        )
        assert list(each.answer_ids) == wanted[0].token_ids and set(each.provenance) == {int(Provenance.DRAFT)}
    with torch.no_grad():
        draft.head_weight.copy_(draft.head_weight.flip(0))
    draft.weights_changed()
    changed = rollouts.OnPolicy(*settings).next_batch(1)
    assert [each.answer_ids for each in changed] != [each.answer_ids for each in batch]


def test_generating_restores_training_mode():
    draft = make_model()
    draft.model.train()
    rollouts.OnPolicy(draft, PROMPTS, ENCODED, Sampling(), 4, 2, 0).next_batch(1)
    assert draft.model.training


def test_given_answers_end_with_eos_and_are_required():
    tokenizer = make_tokenizer()
    sequences = rollouts.given_answers(PROMPTS, ENCODED, tokenizer, 8)
    assert sequences[2].answer_ids == (7, 1) and set(sequences[2].provenance) == {int(Provenance.GIVEN)}
    assert rollouts.given_answers(PROMPTS, ENCODED, tokenizer, 1)[0].answer_ids == (5,)
    with pytest.raises(DataError, match="prompt 'x' has no answer"):
        rollouts.given_answers([Prompt("x", PROMPTS[0].messages)], [[5]], tokenizer, 8)


def test_target_rollouts_are_saved_reloaded_and_filtered_by_prompt(tmp_path):
    target, path = make_model(), tmp_path / "rollouts.jsonl"
    made = rollouts.target_rollouts(
        target,
        PROMPTS,
        ENCODED,
        Sampling(),
        per_prompt=3,
        max_new_tokens=9,
        seed=0,
        progress=Quiet(),
        save_to=path,
    )
    assert len(made) == 18 and len({(each.prompt_id, each.answer_ids) for each in made}) > 12
    assert rollouts.load_rollouts(path, PROMPTS, ENCODED, 65) == made
    some = rollouts.load_rollouts(path, PROMPTS[:2], ENCODED[:2], 65)
    assert {each.prompt_id for each in some} == {"0", "1"} and len(some) == 6
    with pytest.raises(DataError, match="answers none of the training prompts"):
        rollouts.load_rollouts(path, PROMPTS[:1], [[9, 9]], 65)
    with pytest.raises(DataError, match="another tokenizer"):
        rollouts.load_rollouts(path, PROMPTS, ENCODED, 6)
    path.write_text(path.read_text() + json.dumps({"prompt_id": "x"}) + "\n")
    with pytest.raises(DataError, match="line 19: not a rollout"):
        rollouts.load_rollouts(path, PROMPTS, ENCODED, 65)


def test_skd_with_the_whole_vocabulary_is_on_policy():
    """K -> vocabulary: every token is the draft's, and the answers are those of plain decoding with the draft."""
    target, draft = make_model(), make_model(seed=4)
    for each in skd(ModelPair(target, draft), 65, Sampling(temperature=0.0)):
        wanted = generate_plain(
            draft, [list(each.prompt_ids)], sampling=Sampling(temperature=0.0), max_new_tokens=20, seeds=[0]
        )
        assert list(each.answer_ids) == wanted[0].token_ids
        assert set(each.provenance) == {int(Provenance.DRAFT)}


def test_skd_with_one_and_a_greedy_target_is_the_targets_own_answer():
    target, draft = make_model(), perturbed(make_model(), 0.02)
    writers = set()
    for each in skd(ModelPair(target, draft), 1, Sampling(temperature=0.0)):
        wanted = generate_plain(
            target, [list(each.prompt_ids)], sampling=Sampling(temperature=0.0), max_new_tokens=20, seeds=[0]
        )
        assert list(each.answer_ids) == wanted[0].token_ids
        writers |= set(each.provenance)
    assert writers == {int(Provenance.DRAFT), int(Provenance.TARGET)}


@pytest.mark.parametrize("top_k", [1, 5, 25])
def test_skd_keeps_only_draft_tokens_in_the_targets_top_k(top_k):
    """Exactly the emitted token was tested, against the raw logits: filters and temperature play no part."""
    target, draft = make_model(), make_model(seed=4)
    replaced = 0
    for each in skd(ModelPair(target, draft), top_k, Sampling(temperature=0.7, top_k=3, top_p=0.5)):
        ids = torch.tensor([each.prompt_ids + each.answer_ids])
        with torch.no_grad():
            logits = target.logits(target.hidden_states(ids))[0, len(each.prompt_ids) - 1 : -1]
        best = logits.topk(top_k).indices
        for position, (token, writer) in enumerate(zip(each.answer_ids, each.provenance, strict=True)):
            if writer == Provenance.DRAFT:
                assert token in best[position]
            else:
                replaced += 1
                assert token in logits[position].topk(3).indices, "a replacement follows the target's own filters"
    assert replaced > 0


def test_skd_stops_at_the_end_of_sequence_and_at_the_limit():
    target, draft = make_model(), perturbed(make_model(), 0.02)
    for each in skd(ModelPair(target, draft), 10, max_new_tokens=7):
        assert len(each.answer_ids) == 7 or each.answer_ids[-1] == 1
        assert 1 not in each.answer_ids[:-1]
