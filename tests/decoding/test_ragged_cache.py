"""The ragged cache against recomputation from scratch, for any pattern of acceptance and any batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from family_models import family_model
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_drafts import guesses, make_parallel
from tiny_models import make_model, perturbed

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import VllmNgram
from specdistill.decoding.parallel_draft import ParallelDraft, read_with_masks
from specdistill.decoding.position_scaling import cached as cached_scaled

FAMILIES = ("llama", "gemma2", "gpt2")
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.0, 1.0, 1.0],
    "long_factor": [1.0, 2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16,
    "partial_rotary_factor": 1.0,
}
MODELS = {family: make_model(family) for family in FAMILIES}


@st.composite
def histories(draw):
    """Rows, and a list of passes: how many tokens are fed, and how many of them each row keeps."""
    rows = draw(st.integers(1, 4))
    passes = []
    for _ in range(draw(st.integers(1, 6))):
        width = draw(st.integers(1, 5))
        keep = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
        passes.append((width, keep))
    return rows, passes, draw(st.integers(0, 2**31))


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40, deadline=None)
@given(history=histories())
def test_any_accept_pattern_equals_recomputation(family, history):
    rows, passes, seed = history
    model = MODELS[family]
    generator = torch.Generator().manual_seed(seed)
    cached = CachedModel(model, rows, 64)
    kept: list[list[int]] = [[] for _ in range(rows)]
    with torch.inference_mode():
        for width, keep in passes:
            fed = torch.randint(5, 65, (rows, width), generator=generator)
            hidden = cached.forward(fed)
            for row in range(rows):
                text = torch.tensor([kept[row] + fed[row].tolist()])
                wanted = model.hidden_states(text)[0, -width:]
                torch.testing.assert_close(hidden[row], wanted, rtol=1e-4, atol=1e-4)
                kept[row] += fed[row, : keep[row]].tolist()
            cached.advance(keep)
            assert cached.lengths == [len(ids) for ids in kept]


def test_dropping_rows_keeps_the_others():
    model = MODELS["llama"]
    cached = CachedModel(model, 3, 32)
    prompts = torch.randint(5, 65, (3, 6))
    with torch.inference_mode():
        cached.forward(prompts)
        cached.advance([6, 4, 5])
        cached.select([2, 0])
        hidden = cached.forward(torch.tensor([[7], [8]]))
        for row, (source, length, token) in enumerate(((2, 5, 7), (0, 6, 8))):
            text = torch.tensor([[*prompts[source, :length].tolist(), token]])
            torch.testing.assert_close(hidden[row], model.hidden_states(text)[0, -1:], rtol=1e-4, atol=1e-4)


def test_says_when_it_is_full():
    cached = CachedModel(MODELS["llama"], 1, 4)
    with pytest.raises(ValueError, match="can't hold 5"):
        cached.forward(torch.ones(1, 5, dtype=torch.int64))


TEXTS = [[5 + (3 * place) % 60 for place in range(38)], [6 + (7 * place) % 59 for place in range(31)], [9, 8, 7, 6]]
"""The first row has read all but its last token, the second lags behind by 28, and the third by 3."""
READ = [37, 3, 1]
CAPACITY = 42


def lagging(model):
    """Such a batch: padding for the second row's unread tokens would end at 65 in the first row."""
    cached = cached_scaled(model, 3, CAPACITY)
    cached.read([text[:read] for text, read in zip(TEXTS, READ, strict=True)])
    return cached, [text[read:] for text, read in zip(TEXTS, READ, strict=True)]


@pytest.mark.parametrize("family", [*FAMILIES, "longrope"])
@torch.inference_mode()
def test_rows_that_lag_catch_up_beside_a_row_that_is_nearly_full(family):
    """`cache of 42 positions can't hold 65`: an n-gram that copies for one row only lets a draft lag so."""
    model = (
        family_model("phi3", rope_parameters=LONGROPE, original_max_position_embeddings=16)
        if family == "longrope"
        else MODELS[family]
    )
    cached, unread = lagging(model)
    last = cached.read(unread)
    assert cached.lengths == [38, 31, 4]
    following = cached.read_next(torch.tensor([10, 11, 12]))
    for row, text in enumerate(TEXTS):
        wanted = model.hidden_states(torch.tensor([text]))[0]
        torch.testing.assert_close(last[row], wanted[-1], rtol=1e-4, atol=1e-4)
        wanted = model.hidden_states(torch.tensor([[*text, 10 + row]]))[0]
        torch.testing.assert_close(following[row], wanted[-1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_parallel_draft_catches_up_before_its_masks():
    draft = make_parallel(seed=4)
    assert draft.parallel is not None
    cached, unread = lagging(draft)
    hidden = read_with_masks(cached, unread, [draft.parallel.mask_id] * 3)
    assert cached.lengths == [38, 31, 4]
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(draft.logits(hidden[row]), guesses(draft, text, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["one by one", "parallel"])
def test_a_draft_that_is_asked_after_rows_copied_unequally_catches_up(kind, monkeypatch):
    """The long row runs ahead while the other asks; then only the other's copies are right; then the long row asks.

    The draft has then read 77 tokens of the long row, and the other row lags by 31, in a cache of 100.
    """
    target, greedy, new = make_model(vocab_size=72), Sampling(temperature=0.0), 54
    draft = ModelDraft(perturbed(target, 0.5)) if kind == "one by one" else ParallelDraft(make_parallel(seed=4), 66)
    prompts = [[5 + place % 50 for place in range(40)], [9, 8]]
    plain = generate_plain(target, prompts, sampling=greedy, max_new_tokens=new, seeds=[0, 1])
    assert [len(answer.token_ids) for answer in plain] == [new, new]
    whole = {prompt[0]: prompt + answer.token_ids for prompt, answer in zip(prompts, plain, strict=True)}
    ahead = []

    def copy(self, limit):
        right, emitted = whole[self.text[0]][len(self.text) :][:limit], len(self.text) - 40
        if self.text[0] == 9:
            return right if ahead[-1] >= 43 else []
        ahead.append(emitted)
        return right if emitted < 43 else [69] if emitted < 48 else []

    monkeypatch.setattr(VllmNgram, "copy", copy)
    monkeypatch.setattr(VllmNgram, "text", [], raising=False)
    monkeypatch.setattr(VllmNgram, "read", lambda self, ids: setattr(self, "text", [*self.text, *ids]))
    free = FreeThenModel(FreeDraft(partial(VllmNgram, 1, 2), target.vocab_size), draft)
    decoder = SpeculativeDecoder(target, free, num_draft_tokens=5, sampling=greedy)
    written = decoder.generate(prompts, max_new_tokens=new, seeds=[0, 1])
    assert [answer.token_ids for answer in written] == [answer.token_ids for answer in plain]
    assert ahead[:13] == [1, 7, 13, 19, 25, 31, 37, 43, 44, 45, 46, 47, 48]
