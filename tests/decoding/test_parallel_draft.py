"""A draft that guesses several tokens in one pass: the output stays the target's, whatever K, rule and batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from output_law import endless_pair, exact_law, p_value
from parallel_drafts import ANSWER, MASK, PROMPTS, guesses, make_parallel, recorded_proposals, taught_pair
from tiny_models import make_model

from specdistill.decoding import AutoLength, ConfidenceLength, Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.costs import Costs, measure_costs, passes_timed
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.draft_length import FixedLength
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import VllmNgram
from specdistill.decoding.parallel_draft import ParallelDraft, draft_of
from specdistill.decoding.sampling import Keys
from specdistill.files.parallel_drafting import ParallelDrafting as Facts

GREEDY = Sampling(temperature=0.0)
SEEDS = list(range(len(PROMPTS)))


def plain(target, sampling=GREEDY, prompts=PROMPTS, new=ANSWER):
    seeds = list(range(len(prompts)))
    written = generate_plain(target, prompts, sampling=sampling, max_new_tokens=new, seeds=seeds)
    return [answer.token_ids for answer in written]


def decode(target, draft, length, sampling=GREEDY, prompts=PROMPTS, new=ANSWER, **settings):
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=sampling, **settings)
    return decoder.generate(prompts, max_new_tokens=new, seeds=list(range(len(prompts))))


@pytest.mark.parametrize("length", range(1, 13))
def test_greedy_is_the_targets_own_in_a_ragged_batch(length):
    target, draft = taught_pair()
    written = decode(target, draft, length)
    assert [answer.token_ids for answer in written] == plain(target)
    kept = {entry.accepted for answer in written for entry in answer.rounds}
    assert {0, 1} <= kept and max(kept) >= min(length, 5), "the draft should be neither useless nor perfect"
    for row in (0, 5):
        alone = decode(target, draft, length, prompts=[PROMPTS[row]])[0]
        assert (alone.token_ids, alone.rounds) == (written[row].token_ids, written[row].rounds)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2"])
def test_proposals_are_those_of_a_plain_pass_behind_mask_tokens(family, monkeypatch):
    """Windows of 8 tokens end inside the text, so masks and positions must be right for every kind of attention."""
    target, draft = make_model(family), make_parallel(family, seed=4, layers=2)
    calls = recorded_proposals(monkeypatch)
    written = decode(target, draft, 4, prompts=PROMPTS[:5])
    assert [answer.token_ids for answer in written] == plain(target, prompts=PROMPTS[:5])
    seen = set()
    for texts, limits, proposed in calls:
        for text, limit, ids in zip(texts, limits, proposed, strict=True):
            assert ids == guesses(draft, text, limit).argmax(-1)[:limit].tolist()
            seen |= set(ids[1:])
    assert len(seen) > 3, "constant guesses would prove nothing"


@pytest.mark.parametrize("length", [1, 2, 6])
def test_the_cache_holds_the_text_and_no_mask_token(length):
    target, draft = taught_pair()
    texts = [prompt + answer[:9] for prompt, answer in zip(PROMPTS[:4], plain(target), strict=False)]
    drafting = draft_of(draft).begin(PROMPTS[:4], ANSWER, ANSWER + length + 1, GREEDY, CachedModel(target, 4, 9))
    keys = Keys(torch.zeros(4, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with draft.generating():
        for end in (1, 4, 5, 9):
            so_far = [text[: len(prompt) + end] for text, prompt in zip(texts, PROMPTS, strict=False)]
            drafting.propose(so_far, [length] * 4, keys=keys, length=FixedLength(length))
            drafting.commit([[*text, 0] for text in so_far])
            lengths = [len(text) for text in so_far]
            assert drafting._cached.lengths == lengths
            clean = CachedModel(draft, 4, max(lengths))
            clean.read(so_far)
            for layer, wanted in zip(drafting._cached._cache.layers, clean._cache.layers, strict=True):
                for row, count in enumerate(lengths):
                    torch.testing.assert_close(layer.keys[row, :, :count], wanted.keys[row, :, :count])
                    torch.testing.assert_close(layer.values[row, :, :count], wanted.values[row, :, :count])


def test_a_mask_token_that_stays_in_the_cache_is_caught(monkeypatch):
    """Planted: the mask tokens count as read. Output stays the target's, so only the proposals show it."""
    target, draft = taught_pair()
    calls = recorded_proposals(monkeypatch)

    def advance(self, counts):
        own = [count + 2 * (self.model is draft) for count in counts]
        self.lengths = [length + count for length, count in zip(self.lengths, own, strict=True)]

    monkeypatch.setattr(CachedModel, "advance", advance)
    decode(target, draft, 3, prompts=PROMPTS[:2])
    pairs = [
        (ids, guesses(draft, text, limit).argmax(-1)[:limit].tolist())
        for texts, limits, proposed in calls
        for text, limit, ids in zip(texts, limits, proposed, strict=True)
    ]
    assert any(ids != wanted for ids, wanted in pairs)


def test_one_token_needs_no_mask():
    """K = 1 is the ordinary draft, round for round: a mask token of NaN is never read."""
    target, draft = make_model(), make_parallel(seed=4)
    with torch.no_grad():
        draft.model.get_input_embeddings().weight[MASK] = torch.nan
    together = decode(target, draft, 1)
    one_by_one = decode(target, ModelDraft(draft), 1)
    assert [answer.rounds for answer in together] == [answer.rounds for answer in one_by_one]
    assert [answer.token_ids for answer in together] == plain(target)


def test_the_same_model_can_draft_one_by_one():
    target, draft = taught_pair()
    written = decode(target, ModelDraft(draft), 3)
    assert [answer.token_ids for answer in written] == plain(target)
    assert [answer.rounds for answer in written] != [answer.rounds for answer in decode(target, draft, 3)]


def test_a_seed_writes_the_same_alone_and_in_a_batch():
    target, draft = taught_pair()
    sampling = Sampling(temperature=0.8)
    together = decode(target, draft, 5, sampling)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=5, sampling=sampling)
    for row in (0, 3, 11):
        alone = decoder.generate([PROMPTS[row]], max_new_tokens=ANSWER, seeds=[row])[0]
        assert alone.token_ids == together[row].token_ids
    exact = decode(target, draft, 5, sampling, rule="argmax_draft")
    assert [answer.token_ids for answer in exact] == plain(target, sampling)


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_it_never_guesses_what_could_not_be_kept(new, monkeypatch):
    target, draft = taught_pair()
    calls = recorded_proposals(monkeypatch)
    for answer in decode(target, draft, 8, new=new):
        assert len(answer.token_ids) == new
    assert all(limit <= new - 2 for _, limits, _ in calls for limit in limits)


def test_long_prompts_are_read_before_the_masks(monkeypatch):
    """70 tokens and 3: the long row is read in passes, the short one waits."""
    target, draft = make_model(), make_parallel(seed=4)
    prompts = [[5 + place % 60 for place in range(70)], [9, 8, 7], [10]]
    calls = recorded_proposals(monkeypatch)
    written = decode(target, draft, 4, prompts=prompts)
    assert [answer.token_ids for answer in written] == plain(target, prompts=prompts)
    texts, limits, proposed = calls[0]
    for text, limit, ids in zip(texts, limits, proposed, strict=True):
        assert ids == guesses(draft, text, limit).argmax(-1)[:limit].tolist()


def test_it_uses_the_whole_context():
    """The last masks stand at the model's last positions, as learned position embeddings (GPT-2) demand."""
    target, draft = make_model("gpt2", context=32), make_parallel("gpt2", seed=4, context=32)
    prompt = list(range(5, 17))
    written = decode(target, draft, 8, prompts=[prompt], new=20)[0]
    assert [written.token_ids] == plain(target, prompts=[prompt], new=20)


def test_a_trimmed_head_proposes_kept_ids_only():
    target, draft = make_model(), make_parallel(seed=4)
    draft.kept_ids = torch.tensor([1, *range(5, 65, 2)])
    draft_calls = []
    real = draft.to_token_ids
    draft.to_token_ids = lambda ids: draft_calls.append(real(ids)) or draft_calls[-1]
    for sampling in (GREEDY, Sampling()):
        written = decode(target, draft, 4, sampling, rule=None if sampling.greedy else "argmax_draft")
        assert [answer.token_ids for answer in written] == plain(target, sampling)
    assert set(torch.cat(draft_calls).tolist()) <= set(draft.kept_ids.tolist())


def test_confidence_stops_behind_the_first_doubtful_token(monkeypatch):
    target, draft = taught_pair()
    calls = recorded_proposals(monkeypatch)
    written = decode(target, draft, ConfidenceLength(6, 0.5))
    assert [answer.token_ids for answer in written] == plain(target)
    lengths = set()
    for texts, limits, proposed in calls:
        for text, limit, ids in zip(texts, limits, proposed, strict=True):
            chances = guesses(draft, text, 6).softmax(-1).max(-1).values.cumprod(0)[:limit].tolist()
            doubtful = next((place for place, chance in enumerate(chances) if chance < 0.5), limit - 1)
            assert len(ids) == min(limit, doubtful + 1)
            lengths.add(len(ids))
    assert len(lengths) > 3


def test_auto_weighs_one_pass_not_a_step_per_token():
    """Five steps of 0.4 would cost 2 target steps, the pass costs 0.5; a useless draft at 1.2 is soon left alone."""
    target, draft = taught_pair()
    checks, passes = dict.fromkeys(range(1, 10), 1.0), dict.fromkeys(range(1, 9), (0.5, 0.5))
    counted = {}
    for name, model, by_pass in (
        ("in one pass", draft, passes),
        ("if each token took a step", draft, None),
        ("useless", make_parallel(seed=9), dict.fromkeys(range(1, 9), (1.2, 1.2))),
    ):
        written = decode(target, model, AutoLength(Costs(1.0, 0.4, checks, by_pass), 8))
        assert [answer.token_ids for answer in written] == plain(target)
        proposed = [entry.proposed for answer in written for entry in answer.rounds]
        counted[name] = sum(proposed) / len(proposed)
    assert counted["in one pass"] > 3 > 1.2 > counted["if each token took a step"]
    assert counted["useless"] < 1


def test_a_pass_costs_more_the_more_new_tokens_it_reads():
    costs = Costs(2.0, 0.5, {1: 1.0, 2: 1.2, 3: 1.4, 4: 1.5}, {1: (0.25, 0.3), 3: (0.4, 0.7)})
    assert costs.drafting.of_round(0, 1) == 0
    assert costs.round_cost(1, 1.0) == pytest.approx(0.25 + 1.2)
    # 3 guessed tokens behind 2.5 new ones: half-way between 1 and 4.
    assert costs.round_cost(3, 2.5) == pytest.approx(0.55 + 1.5)
    assert Costs(2.0, 0.5, {4: 1.5}).round_cost(3, 2.5) == pytest.approx(3 * 0.25 + 1.5)


def test_every_pass_of_a_parallel_draft_is_timed(monkeypatch):
    """Widths read, and rows whose logits are made: 1 and K + 1 new tokens before K - 1 masks, K rows."""
    target, draft = make_model(), make_parallel(seed=4)
    seen, heads = [], []
    real, own = CachedModel.forward, CachedModel.own_logits

    def forward(self, ids):
        seen.append((self.model is draft, ids.shape[1]))
        return real(self, ids)

    def own_logits(self, hidden):
        heads.append((*seen[-1], hidden.shape[1]))
        return own(self, hidden)

    monkeypatch.setattr(CachedModel, "forward", forward)
    monkeypatch.setattr(CachedModel, "own_logits", own_logits)
    passes = []
    settings = {"batch_size": 2, "max_draft_tokens": 3, "context": 4, "repeats": 1}
    costs = measure_costs(target, draft, **settings, on_pass=lambda: passes.append(1))
    assert len(passes) == passes_timed(draft, 3, repeats=1)
    assert {(width, rows) for is_draft, width, rows in heads if not is_draft} == {(1, 1), (2, 2), (3, 3), (4, 4)}
    assert {(width, rows) for is_draft, width, rows in heads if is_draft} == {
        *((1, 1), (2, 1)),
        *((2, 2), (4, 2)),
        *((3, 3), (6, 3)),
    }
    assert costs.draft_passes is not None and sorted(costs.draft_passes) == [1, 2, 3]
    assert measure_costs(target, target, **settings).draft_passes is None


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.3)])
def test_it_is_asked_where_nothing_is_copied(sampling, monkeypatch):
    target, draft = taught_pair()
    calls = recorded_proposals(monkeypatch)
    kind = FreeThenModel(FreeDraft(partial(VllmNgram, 2, 3), target.vocab_size), draft_of(draft))
    written = decode(target, kind, 4, sampling, rule=None if sampling.greedy else "argmax_draft")
    assert [answer.token_ids for answer in written] == plain(target, sampling)
    assert calls and any(0 in limits for _, limits, _ in calls)
    for texts, limits, proposed in calls:
        for text, limit, ids in zip(texts, limits, proposed, strict=True):
            assert ids == guesses(draft, text, max(limit, 1)).argmax(-1)[:limit].tolist()


@pytest.fixture(scope="module")
def endless():
    target, draft = endless_pair()
    Facts(10).write_to(draft.config)
    return target, draft


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft", "block", "until doubt", "correlated"])
@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.3, top_k=6, top_p=0.9)], ids=["plain", "all filters"]
)
def test_three_tokens_follow_the_target(endless, rule, sampling, monkeypatch):
    """The second and third token come from the rows of the newest token and of the first mask.

    Planted as `correlated`: every row draws with the first row's random numbers, so that a proposal depends on the
    one before it; then its own row is not its distribution given those.
    """
    target, draft = endless
    prompt, vocab = [5, 6, 7], target.vocab_size
    if rule == "correlated":
        real = torch.tensor
        monkeypatch.setattr(
            "specdistill.decoding.parallel_draft.draw",
            lambda logits, sampling, keys, from_draft, ahead: _pick(logits, sampling, keys, real(0)),
        )
    length = ConfidenceLength(3, 0.3) if rule == "until doubt" else 3
    served = "sampled" if rule in ("until doubt", "correlated") else rule
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=sampling, rule=served)
    assert isinstance(decoder.draft, ParallelDraft)
    counts, kept, proposed = torch.zeros(vocab**3), [0] * 4, 0
    for repeat in range(10):
        seeds = [repeat * 500 + row for row in range(500)]
        for result in decoder.generate([prompt] * 500, max_new_tokens=5, seeds=seeds):
            a, b, c = result.token_ids[:3]
            counts[(a * vocab + b) * vocab + c] += 1
            kept[result.rounds[0].accepted] += 1
            proposed += result.rounds[0].proposed
    assert proposed > 5000 and all(kept[1:3]), "masks must be used, and some of their tokens kept"
    p = p_value(counts, exact_law(target, sampling, prompt).double())
    assert (p > 1e-5) == (rule != "correlated")


def _pick(logits, sampling, keys, ahead):
    from specdistill.decoding.sampling import pick

    return pick(logits, sampling, keys, from_draft=True, ahead=ahead)
