"""Sample answers token by token: who wrote what, what was rejected, with which probability, and whole characters."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import make_model, perturbed, save
from tiny_tokenizers import byte_level, sentencepiece

from specdistill import BenchConfig, SpeculativeDecoder
from specdistill.data.prompts import Prompt
from specdistill.decoding import Generation, Sampling
from specdistill.decoding.generation import Round
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.samples import _GrowingText, make_sample, rejected_tokens, spread_samples

GREEDY = Sampling(temperature=0.0)


def prompt(name="p", category="all", text="w1 w2"):
    return Prompt(name, ({"role": "user", "content": text},), category)


@pytest.fixture(scope="module")
def pair():
    target = make_model(layers=3)
    return target, perturbed(target, 0.05)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.3)], ids=["greedy", "sampled"])
def test_every_rejected_token_is_the_one_that_the_draft_had_proposed(pair, sampling):
    """Decoding again from the draft alone: behind the kept tokens of a greedy round it proposes what was rejected."""
    target, draft = pair
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=sampling)
    prompts = [[5, 6, 7], [8, 9]]
    written = decoder.generate(prompts, max_new_tokens=30, seeds=[0, 1])
    seen = 0
    for ids, generation in zip(prompts, written, strict=True):
        rejected = rejected_tokens(generation)
        assert sum(token is not None for token in rejected) == sum(
            each.accepted < each.proposed and each.emitted > each.accepted for each in generation.rounds
        )
        for place, token in enumerate(rejected):
            if token is None:
                continue
            seen += 1
            assert not generation.from_draft[place]
            if sampling.greedy:
                text = torch.tensor([[*ids, *generation.token_ids[:place]]])
                with torch.no_grad():
                    logits = draft.logits(draft.hidden_states(text)[0, -1:])[0]
                assert token == int(logits.argmax()) != generation.token_ids[place]
    assert seen > 3


def test_rejected_tokens_by_hand():
    generation = Generation(token_ids=[10, 11, 12, 13, 14, 15], from_draft=[False, True, True, False, False, True])
    generation.rounds = [Round(3, 2, 3, rejected=50), Round(2, 0, 1, rejected=51), Round(1, 1, 1)]
    assert rejected_tokens(generation) == [None, None, None, 50, 51, None]
    # Where the draft proposes the first token too, no token stands before the rounds.
    generation = Generation(token_ids=[1, 2], from_draft=[False, True], rounds=[Round(1, 0, 1, 9), Round(2, 1, 1)])
    assert rejected_tokens(generation) == [9, None]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.7, top_k=5)], ids=["greedy", "top-k"])
def test_probabilities_are_those_of_the_bench_and_at_temperature_0_those_of_temperature_1(pair, sampling):
    target, draft = pair
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=sampling)
    ids = [5, 6, 7]
    generation = decoder.generate([ids], max_new_tokens=20, seeds=[3])[0]
    sample = make_sample(target, draft, prompt(), ids, generation, sampling)
    assert [token.by == "draft" for token in sample.tokens] == generation.from_draft and not sample.shortened
    rejected = rejected_tokens(generation)
    assert any(rejected)
    text = torch.tensor([[*ids, *generation.token_ids]])
    for model, own, other in ((target, "p", "proposed_p"), (draft, "q", "proposed_q")):
        with torch.no_grad():
            logits = model.logits(model.hidden_states(text)[0, len(ids) - 1 : -1]).double()
        if not sampling.greedy:
            lowest = logits.topk(sampling.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < lowest, -torch.inf) / sampling.temperature
        wanted = logits.softmax(-1)
        for place, token in enumerate(sample.tokens):
            assert getattr(token, own) == pytest.approx(float(wanted[place, generation.token_ids[place]]), abs=6e-5)
            replaced = rejected[place]
            expected = None if replaced is None else float(wanted[place, replaced])
            assert getattr(token, other) == (None if expected is None else pytest.approx(expected, abs=6e-5))


def test_what_was_rejected_is_in_words(pair):
    target, draft = pair
    generation = Generation(token_ids=[10, 12], from_draft=[True, False], rounds=[Round(2, 1, 2, rejected=11)])
    generation.finish_reason = "length"
    sample = make_sample(target, draft, prompt(), [5, 6], generation, GREEDY)
    # Ids start after five special tokens; whole words are joined by a space.
    assert [(token.text, token.by, token.proposed) for token in sample.tokens] == [
        (" w5", "draft", None), (" w7", "target", " w6")
    ]  # fmt: skip
    assert (sample.prompt_id, sample.prompt) == ("p", "w1 w2")
    long = make_sample(target, draft, prompt(text="x" * 500), [5, 6], generation, GREEDY)
    assert long.prompt == "x" * 400 + "…"


def growing(tokenizer, text, before="a"):
    ids = tokenizer.encode(text, add_special_tokens=False)
    reader = _GrowingText(SimpleNamespace(tokenizer=tokenizer), tokenizer.encode(before, add_special_tokens=False))  # pyright: ignore
    return ids, reader, [reader.add(token) for token in ids]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_a_character_of_several_tokens_comes_whole_with_the_last_of_them(make):
    """The bytes of an emoji one by one were shown as replacement characters."""
    tokenizer = make(["hello", " world"])
    ids, _, pieces = growing(tokenizer, "né🙂!")
    assert "".join(pieces).strip() == "né🙂!" and "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(ids) and pieces.count("") >= 4 and "🙂" in pieces and "é" in pieces


def test_a_rejected_part_of_a_character_is_no_garbage_and_half_a_character_at_the_end_is_left_out():
    tokenizer = byte_level(["hello"])
    smile = tokenizer.encode("🙂", add_special_tokens=False)
    _, reader, _ = growing(tokenizer, "hi")
    assert reader.peek(smile[0]) == "" and reader.peek(tokenizer.encode("x")[-1]) == "x"
    assert [reader.add(token) for token in smile[:3]] == ["", "", ""] and reader.peek(smile[3]) == "🙂"
    # What comes after bytes that never become a character is shown again.
    assert "x" in reader.add(tokenizer.encode("x")[-1])


def test_a_replacement_character_that_the_model_wrote_is_kept():
    tokenizer = byte_level(["hello"])
    _, _, pieces = growing(tokenizer, "a\ufffdb")
    assert "".join(pieces) == "a\ufffdb"


def test_samples_are_of_different_categories_as_far_as_there_are_any():
    prompts = [prompt(str(number), category) for number, category in enumerate("aabac")]
    assert spread_samples(prompts, 3) == [0, 2, 4]
    assert spread_samples(prompts, 4) == [0, 1, 2, 4] and spread_samples(prompts, 9) == [0, 1, 2, 3, 4]
    assert spread_samples([], 3) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(perturbed(target, 0.05), folder / "draft")
    rows = [{"prompt": f"w{i} w{i + 1}", "category": "ab"[i % 2]} for i in range(6)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(("show", "batch_size", "count"), [(0, 1, 3), (5, 2, 5), (50, 1, 6)])
def test_a_bench_has_three_samples_or_as_many_as_are_shown(folder, show, batch_size, count):
    report = measure_draft(
        BenchConfig.flat(
            target=str(folder / "target"), draft=str(folder / "draft"), prompts=str(folder / "prompts.jsonl"),
            max_new_tokens=20, max_draft_tokens=3, num_draft_tokens=2, show=show, batch_size=batch_size,
        )
    )  # fmt: skip
    samples = report.samples or []
    assert len(samples) == count and {sample.category for sample in samples} == {"a", "b"}
    tokens = [token for sample in report.samples or [] for token in sample.tokens]
    assert {token.by for token in tokens} == {"draft", "target"}
    # At temperature 0 nothing but the target's likeliest token can be accepted.
    assert any(token.proposed is not None and token.proposed_p < token.p for token in tokens)
    parsed = report.to_json()["samples"][0]["tokens"]
    assert {"text", "by", "p", "q"} <= parsed[0].keys()
    assert any("proposed" in token for token in parsed) and not all("proposed" in token for token in parsed)
