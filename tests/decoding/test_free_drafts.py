"""Drafts without weights, alone and before a model: what is emitted is the target's own, and copies are accepted."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from output_law import endless_pair, exact_law, p_value
from tiny_models import make_model, perturbed

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import VllmNgram
from specdistill.decoding.suffix import SuffixMemory

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [20, 21], [30, 31, 32, 33, 34, 30, 31], [9]]
NEW = 60


def drafts(target, model):
    ngram = FreeDraft(partial(VllmNgram, 1, 3), target.vocab_size)
    return {
        "ngram": ngram,
        "suffix": FreeDraft(SuffixMemory(), target.vocab_size),
        "ngram, then a model": FreeThenModel(ngram, ModelDraft(model)),
    }


@pytest.mark.parametrize("name", ["ngram", "suffix", "ngram, then a model"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.3), Sampling(temperature=0.7, top_k=5)])
def test_answers_are_the_targets_own_in_a_ragged_batch(name, sampling):
    target = make_model()
    kind = drafts(target, perturbed(target, 0.02))[name]
    plain = generate_plain(target, PROMPTS, sampling=sampling, max_new_tokens=NEW, seeds=[0, 1, 2, 3])
    # A certain draft is verified token for token with the target's own random numbers.
    rule = None if sampling.greedy else "argmax_draft"
    decoder = SpeculativeDecoder(target, kind, num_draft_tokens=4, sampling=sampling, rule=rule)
    written = decoder.generate(PROMPTS, max_new_tokens=NEW, seeds=[0, 1, 2, 3])
    assert [answer.token_ids for answer in written] == [answer.token_ids for answer in plain]
    rounds = [entry for answer in written for entry in answer.rounds]
    assert any(entry.accepted > 0 for entry in rounds), "something must be copied"
    assert any(entry.accepted < entry.proposed for entry in rounds), "and something rejected"


def test_a_free_draft_alone_proposes_what_its_lookup_copies():
    target = make_model()
    decoder = SpeculativeDecoder(target, drafts(target, target)["ngram"], num_draft_tokens=4, sampling=GREEDY)
    answer = decoder.generate([PROMPTS[0]], max_new_tokens=NEW, seeds=[0])[0]
    lookup, place = VllmNgram(1, 3), 1
    lookup.read([*PROMPTS[0], answer.token_ids[0]])
    for entry in answer.rounds:
        run = lookup.copy(min(4, NEW - place - 1))
        assert entry.proposed == len(run)
        assert answer.token_ids[place : place + entry.accepted] == run[: entry.accepted]
        lookup.read(answer.token_ids[place : place + entry.emitted])
        place += entry.emitted


def test_the_model_is_asked_only_where_nothing_is_copied(monkeypatch):
    target = make_model()
    asked = []
    real = ModelDraft.begin

    def begin(self, *arguments):
        drafting = real(self, *arguments)
        propose = drafting.propose

        def recorded(texts, limits, **settings):
            asked.append(list(limits))
            return propose(texts, limits, **settings)

        drafting.propose = recorded
        return drafting

    monkeypatch.setattr(ModelDraft, "begin", begin)
    kind = drafts(target, perturbed(target, 0.02))["ngram, then a model"]
    SpeculativeDecoder(target, kind, num_draft_tokens=2, sampling=GREEDY).generate(
        [[5, 6, 5], [9]], max_new_tokens=4, seeds=[0, 1]
    )
    lookups = VllmNgram(1, 3), VllmNgram(1, 3)
    first = generate_plain(target, [[5, 6, 5], [9]], sampling=GREEDY, max_new_tokens=1, seeds=[0, 1])
    for lookup, prompt, answer in zip(lookups, ([5, 6, 5], [9]), first, strict=True):
        lookup.read([*prompt, *answer.token_ids])
    assert asked[0] == [0 if lookup.copy(2) else 2 for lookup in lookups]


@pytest.mark.parametrize("rule", ["sampled", "block", "argmax_draft"])
def test_copies_and_drawn_tokens_in_one_draft_follow_the_target(rule):
    target, draft = endless_pair()
    prompt, vocab = [5, 6, 5], target.vocab_size
    kind = FreeThenModel(FreeDraft(partial(VllmNgram, 1, 2), vocab), ModelDraft(draft))
    decoder = SpeculativeDecoder(target, kind, num_draft_tokens=2, sampling=Sampling(), rule=rule)
    counts, accepted, proposed = torch.zeros(vocab**3), 0, 0
    for repeat in range(8):
        seeds = [repeat * 500 + row for row in range(500)]
        for result in decoder.generate([prompt] * 500, max_new_tokens=3, seeds=seeds):
            a, b, c = result.token_ids
            counts[(a * vocab + b) * vocab + c] += 1
            accepted += sum(entry.accepted for entry in result.rounds)
            proposed += sum(entry.proposed for entry in result.rounds)
    assert 0.05 < accepted / proposed < 0.95
    assert p_value(counts, exact_law(target, Sampling(), prompt).double()) > 1e-5


def test_the_ends_of_answers_are_remembered_where_a_model_stands_behind():
    """The last round's tokens were never read: no later text could copy them."""
    target, texts = make_model(), []

    class Reader:
        def __init__(self):
            texts.append([])
            self._text = texts[-1]

        def read(self, ids):
            self._text.extend(ids)

        def copy(self, most):
            return []

    kind = FreeThenModel(FreeDraft(Reader, target.vocab_size), ModelDraft(perturbed(target, 0.02)))
    decoder = SpeculativeDecoder(target, kind, num_draft_tokens=4, sampling=GREEDY)
    answers = decoder.generate(PROMPTS, max_new_tokens=9, seeds=[0, 1, 2, 3])
    assert texts == [prompt + answer.token_ids for prompt, answer in zip(PROMPTS, answers, strict=True)]


def test_a_row_that_copies_beside_rows_that_ask_the_model_keeps_a_clean_cache():
    """Its padding stood in the model's cache for the tokens that it copied: later drafts of that row were others."""
    target = make_model()
    kind = drafts(target, perturbed(target, 0.02))["ngram, then a model"]
    for length in (2, 4):
        decoder = SpeculativeDecoder(target, kind, num_draft_tokens=length, sampling=GREEDY)
        together = decoder.generate(PROMPTS, max_new_tokens=NEW, seeds=[0, 1, 2, 3])
        alone = [decoder.generate([prompt], max_new_tokens=NEW, seeds=[0])[0] for prompt in PROMPTS]
        assert [answer.rounds for answer in together] == [answer.rounds for answer in alone]
