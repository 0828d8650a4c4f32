"""A head that reads its target: the output stays the target's, and it proposes what plain passes would."""

from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from head_drafts import GREEDY, PROMPTS, decode, guesses, make_head, plain, taught_pair
from output_law import endless_pair, exact_law, p_value
from tiny_models import make_model, make_tokenizer

from specdistill.decoding import AutoLength, ConfidenceLength, Guidance, Sampling, SpeculativeDecoder
from specdistill.decoding.cached_head import CachedHead, HeadReader
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_kinds import ModelDrafting
from specdistill.decoding.draft_length import FixedLength
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.head_draft import HeadDraft, HeadDrafting
from specdistill.decoding.lookup import VllmNgram
from specdistill.decoding.parallel_draft import draft_of
from specdistill.decoding.sampling import Keys
from specdistill.decoding.target_features import TargetFeatures
from specdistill.distill.sequences.skd import TopKAcceptance

taught = functools.cache(taught_pair)


def recorded(monkeypatch) -> list[tuple[list[int], list[int]]]:
    """Each row's text and proposed ids, as they come."""
    calls = []
    real = HeadDrafting.propose

    def propose(self, texts, limits, **settings):
        proposal, counts = real(self, texts, limits, **settings)
        rows = [part.tolist() for part in proposal.token_ids.split(counts)]
        calls.extend(zip([list(text) for text in texts], rows, strict=True))
        return proposal, counts

    monkeypatch.setattr(HeadDrafting, "propose", propose)
    return calls


def proposed_by_plain_passes(target, draft, text, count):
    return draft.to_token_ids(guesses(target, draft, text, count).argmax(-1)).tolist() if count else []


@pytest.mark.parametrize("length", range(1, 9))
def test_greedy_is_the_targets_own_in_a_ragged_batch(length):
    target, draft = taught()
    written = decode(target, draft, length)
    assert [answer.token_ids for answer in written] == plain(target)
    kept = {entry.accepted for answer in written for entry in answer.rounds}
    assert 0 in kept and max(kept) >= min(length, 3), "the head should be neither useless nor perfect"
    for row in (0, 5, 7):
        alone = decode(target, draft, length, prompts=[PROMPTS[row]])[0]
        assert (alone.token_ids, alone.rounds) == (written[row].token_ids, written[row].rounds)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("own_embedding", [False, True])
def test_proposals_are_those_of_plain_passes(family, own_embedding, monkeypatch):
    target = make_model(family, layers=7)
    draft = make_head(target, own_embedding=own_embedding)
    calls = recorded(monkeypatch)
    written = decode(target, draft, 4)
    assert [answer.token_ids for answer in written] == plain(target)
    for text, ids in calls:
        assert ids == proposed_by_plain_passes(target, draft, text, len(ids))
    assert len({tuple(ids) for _, ids in calls}) > 10, "constant proposals would prove nothing"


def _keeping_guesses(self, texts, limits, **settings):
    return ModelDrafting.propose(self, [text[1:] for text in texts], limits, **settings)


def _keep(self, texts):
    ModelDrafting.commit(self, [text[1:] for text in texts])


@pytest.mark.parametrize("wrong", ["nothing", "stale rows", "older features", "no feature of its own"])
def test_wrong_features_are_caught(wrong, monkeypatch):
    """Planted: rows of guesses that were kept are not read again with the target's features; a row reads the feature
    before its own; later steps read the target's feature, which is not there yet."""
    target, draft = taught()
    if wrong == "stale rows":
        monkeypatch.setattr(HeadDrafting, "propose", _keeping_guesses)
        monkeypatch.setattr(HeadDrafting, "commit", _keep)
    elif wrong == "older features":
        at = TargetFeatures.at
        monkeypatch.setattr(TargetFeatures, "at", lambda self, positions: at(self, (positions - 1).clamp(min=0)))
    elif wrong == "no feature of its own":
        real = HeadReader.run

        def forgetful(self, *arguments):
            self.own = None
            return real(self, *arguments)

        monkeypatch.setattr(HeadReader, "run", forgetful)
    differences, propose = [], HeadDrafting.propose

    def compared(self, texts, limits, **settings):
        proposal, counts = propose(self, texts, limits, **settings)
        rows = zip(texts, proposal.token_ids.split(counts), proposal.logits.split(counts), strict=True)
        for text, ids, logits in rows:
            if len(ids):
                wanted = guesses(target, draft, text, ids.tolist())
                differences.append((logits[:, draft.kept_ids] - wanted).abs().max().item())
        return proposal, counts

    monkeypatch.setattr(HeadDrafting, "propose", compared)
    sampling = Sampling(temperature=0.1)
    written = decode(target, draft, 3, sampling, rule="sampled")
    assert sum(entry.accepted for answer in written for entry in answer.rounds) > 5
    assert (max(differences) > 1e-2) == (wrong != "nothing") and len(differences) > 20


def test_the_cache_holds_rows_with_the_targets_features_only():
    target, draft = taught()
    prompts, answers = PROMPTS[:4], plain(target)[:4]
    texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
    with target.generating():
        reader = CachedModel(target, 4, 40)
        drafting = HeadDraft(draft).begin(prompts, 24, 30, GREEDY, reader)
        keys = Keys(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
        reader.read([text[: len(prompt) + 8] for text, prompt in zip(texts, prompts, strict=True)])
        for end in (1, 3, 4, 9):
            so_far = [text[: len(prompt) + end] for text, prompt in zip(texts, prompts, strict=True)]
            assert drafting.unread(so_far) == max(len(text) - 1 for text in so_far) if end == 1 else True
            drafting.propose(so_far, [5] * 4, keys=keys, length=FixedLength(5))
            assert drafting._cached.lengths == [len(text) - 1 for text in so_far]
        clean = CachedModel(target, 4, 40)
        other = CachedHead(draft, 4, 40, clean)
        clean.read([text[:-1] for text in so_far])
        other.read([text[1:] for text in so_far])
        layers = drafting._cached._cache.layers[0], other._cache.layers[0]
        for row, text in enumerate(so_far):
            for name in ("keys", "values"):
                ours, wanted = (getattr(layer, name)[row, :, : len(text) - 1] for layer in layers)
                torch.testing.assert_close(ours, wanted)


def test_a_seed_writes_the_same_alone_and_in_a_batch():
    target, draft = taught()
    sampling = Sampling(temperature=0.8)
    together = decode(target, draft, 4, sampling)
    for row in (0, 3, 7):
        alone = decode(target, draft, 4, sampling, prompts=[PROMPTS[row]], seeds=[row])[0]
        assert alone.token_ids == together[row].token_ids
    exact = decode(target, draft, 4, sampling, rule="argmax_draft")
    assert [answer.token_ids for answer in exact] == plain(target, sampling)


def test_after_plain_steps_it_reads_what_it_missed(monkeypatch):
    """Costs at which a useless head is left alone, and tested now and then."""
    target = make_model(layers=7)
    draft, calls = make_head(target, seed=3), recorded(monkeypatch)
    costs = Costs(1.0, 0.9, {1: 1.0, 2: 1.5, 3: 2.0, 4: 2.5}, None)
    written = decode(target, draft, AutoLength(costs, 3, probe_share=0.3), new=60)
    assert [answer.token_ids for answer in written] == plain(target, new=60)
    assert any(entry.proposed == 0 for answer in written for entry in answer.rounds)
    asked = [(text, ids) for text, ids in calls if ids]
    assert len({len(text) for text, _ in asked}) > 2
    assert all(ids == proposed_by_plain_passes(target, draft, text, len(ids)) for text, ids in asked)


def test_confidence_stops_behind_the_first_doubtful_token(monkeypatch):
    target, draft = taught()
    calls = recorded(monkeypatch)
    written = decode(target, draft, ConfidenceLength(6, 0.4))
    assert [answer.token_ids for answer in written] == plain(target)
    for text, ids in calls:
        chances = guesses(target, draft, text, 6).softmax(-1).max(-1).values.cumprod(0)[: len(ids)]
        assert (chances[:-1] >= 0.4).all()
    assert len({len(ids) for _, ids in calls}) > 2


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.3)])
def test_it_is_asked_where_nothing_is_copied(sampling, monkeypatch):
    target, draft = taught()
    calls = recorded(monkeypatch)
    kind = FreeThenModel(FreeDraft(partial(VllmNgram, 1, 3), target.vocab_size), HeadDraft(draft))
    written = decode(target, kind, 4, sampling, rule=None if sampling.greedy else "argmax_draft")
    assert [answer.token_ids for answer in written] == plain(target, sampling)
    assert any(ids for _, ids in calls) and any(not ids for _, ids in calls)
    assert all(ids == proposed_by_plain_passes(target, draft, text, len(ids)) for text, ids in calls)


def test_guidance_gives_it_the_rows_own_states(monkeypatch):
    target, draft = taught()
    calls = recorded(monkeypatch)
    written = decode(target, draft, 3, guidance=Guidance((9, 10, 11, 12, 13), 1.5))
    assert all(ids == proposed_by_plain_passes(target, draft, text, len(ids)) for text, ids in calls)
    guided = decode(target, draft, 1, guidance=Guidance((9, 10, 11, 12, 13), 1.5))
    assert [answer.token_ids for answer in written] == [answer.token_ids for answer in guided]
    assert [answer.token_ids for answer in written] != plain(target)


def test_it_drafts_the_first_token_where_draft_and_target_write_together(monkeypatch):
    target, draft = taught()
    calls = recorded(monkeypatch)
    acceptance = TopKAcceptance(1, GREEDY)
    written = decode(target, draft, 4, acceptance=acceptance)
    assert [answer.token_ids for answer in written] == plain(target)
    assert {text == prompt for (text, _), prompt in zip(calls[: len(PROMPTS)], PROMPTS, strict=True)} == {True}
    assert all(ids == proposed_by_plain_passes(target, draft, text, len(ids)) for text, ids in calls)


def test_long_prompts_are_read_in_passes(monkeypatch):
    target, draft = make_model(layers=7), None
    draft = make_head(target)
    monkeypatch.setattr("specdistill.decoding.cached_model.WHOLE_BYTES", 0)
    monkeypatch.setattr("specdistill.decoding.cached_model.PASS_BYTES", 1)
    prompts = [[5 + place % 60 for place in range(150)], [9, 8, 7], [10, 11]]
    calls = recorded(monkeypatch)
    written = decode(target, draft, 4, prompts=prompts)
    assert [answer.token_ids for answer in written] == plain(target, prompts=prompts)
    assert all(ids == proposed_by_plain_passes(target, draft, text, len(ids)) for text, ids in calls)


def test_other_drafts_keep_no_states_of_the_target(monkeypatch):
    target = make_model(layers=3)
    monkeypatch.setattr(CachedModel, "watch", None)
    decode(target, make_model(seed=4, layers=1), 3)
    assert not any(layer._forward_hooks for layer in target.base_model.layers)


def test_no_hook_stays_on_the_target():
    target, draft = taught()
    decode(target, draft, 3)
    modules = list(target.base_model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


@pytest.fixture(scope="module")
def endless():
    tokenizer = make_tokenizer(words=4)
    target = make_model(tokenizer=tokenizer, layers=2, vocab_size=12, scale=6.0)
    plain_target, _ = endless_pair()
    target.model.generation_config.eos_token_id = plain_target.model.generation_config.eos_token_id
    target.model.config.eos_token_id = None
    target.tokenizer.eos_token = None
    # Two ids are never proposed, so that the rest of the vocabulary matters.
    return target, make_head(target, [0, 1, 3, 4, 5, 6, 8], noise=1.0)


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft", "block", "lenient", "until doubt"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.3, top_k=6, top_p=0.9)], ids=["plain", "all filters"]
)
def test_three_tokens_follow_the_target(endless, rule, sampling):
    target, draft = endless
    prompt, vocab = [5, 6, 7], target.vocab_size
    length = ConfidenceLength(3, 0.3) if rule == "until doubt" else 3
    served = "sampled" if rule == "until doubt" else rule
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=sampling, rule=served)
    assert isinstance(decoder.draft, HeadDraft) and isinstance(draft_of(draft), HeadDraft)
    counts, kept = torch.zeros(vocab**3), [0] * 4
    for repeat in range(10):
        seeds = [repeat * 500 + row for row in range(500)]
        for result in decoder.generate([prompt] * 500, max_new_tokens=5, seeds=seeds):
            a, b, c = result.token_ids[:3]
            counts[(a * vocab + b) * vocab + c] += 1
            kept[result.rounds[0].accepted] += 1
    assert all(kept[1:3]), "some of its tokens should be kept"
    assert p_value(counts, exact_law(target, sampling, prompt).double()) > 1e-5


@pytest.mark.parametrize("law", ["its own", "the target's twin"])
def test_a_wrong_probability_of_the_head_is_caught(endless, law, monkeypatch):
    """Planted: the proposal names other probabilities than those that the token was drawn with."""
    target, draft = endless
    prompt, vocab = [5, 6, 7], target.vocab_size
    if law != "its own":
        monkeypatch.setattr(type(draft), "to_vocabulary", lambda self, own: own.new_zeros(*own.shape[:-1], vocab))
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=2, sampling=Sampling())
    counts = torch.zeros(vocab**3)
    for result in decoder.generate([prompt] * 4000, max_new_tokens=4, seeds=list(range(4000))):
        a, b, c = result.token_ids[:3]
        counts[(a * vocab + b) * vocab + c] += 1
    p = p_value(counts, exact_law(target, Sampling(), prompt).double())
    assert (p > 1e-5) == (law == "its own")
