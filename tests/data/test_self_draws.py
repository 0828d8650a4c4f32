"""Which of a target's texts are prompts, on which side, and why others are dropped."""

from __future__ import annotations

import hashlib
import re

import pytest

from specdistill.data.self_draws import Draw, SortedDraws, half_of
from specdistill.errors import ConfigError
from specdistill.settings.self_prompts import SelfPromptSettings, SelfSource, answers_read, self_source

MARKERS = ["<|im_end|>"]


def sort_out(*texts, ended=True, raw=False):
    found = SortedDraws()
    for number, text in enumerate(texts):
        found.add(Draw(number, text, ended), MARKERS, raw=raw)
    return found


def kept(found):
    return sorted(draw.text for half in found.prompts.values() for draw in half)


def test_each_reason_is_counted_by_itself():
    found = sort_out(" Why? ", "why?", "WHY?\n", "", " \n", "a <|im_end|> b", "half a \ufffd")
    assert kept(found) == ["Why?"]
    assert found.dropped == {"duplicate": 2, "empty": 2, "marked": 2}
    assert sum(found.dropped.values()) + 1 == found.draws == 7


def test_a_text_that_was_cut_off_is_no_prompt():
    assert sort_out("Tell me", "Tell me", ended=False).dropped == {"truncated": 2}


def test_raw_text_is_cut_at_a_whole_word():
    assert kept(sort_out("It was the bes", "Once", ended=False, raw=True)) == ["It was the", "Once"]
    assert kept(sort_out("It was the best", raw=True)) == ["It was the best"]


def test_a_text_has_one_side_whatever_surrounds_it():
    texts = [f"question {number}" for number in range(500)]
    digests = {text: int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) for text in texts}
    heldout = {text for text in texts if digests[text] % 5 == 0}
    found = sort_out(*texts)
    assert {draw.text for draw in found.prompts["heldout"]} == heldout and 70 < len(heldout) < 130
    # In another order, in capitals and under another number.
    other = sort_out(*[text.upper() for text in reversed(texts)])
    assert {draw.text.lower() for draw in other.prompts["heldout"]} == heldout
    assert half_of("question 0") == ("heldout" if "question 0" in heldout else "train")


def test_counts_depend_on_the_number_asked_for_and_not_on_what_else_is_there():
    draws = [Draw(number, f"question {number % 90}", True) for number in range(200)]
    few, many = SortedDraws(), SortedDraws()
    assert few.add_until(draws[:100], "train", 30, MARKERS, raw=False)
    assert many.add_until(draws, "train", 30, MARKERS, raw=False)
    assert few.counts() == many.counts() and few.counts()["train"] == 30
    assert not SortedDraws().add_until(draws, "heldout", 90, MARKERS, raw=False)


@pytest.mark.parametrize(
    ("source", "half", "wanted"),
    [
        ("self:10", "train", SelfSource(10, "train")),
        ("self:10", "heldout", SelfSource(10, "heldout")),
        ("self:10:train", "heldout", SelfSource(10, "train")),
        ("self:10:heldout", "train", SelfSource(10, "heldout")),
        ("builtin:train", "train", None),
        ("selfish.jsonl", "train", None),
    ],
)
def test_a_source_names_number_and_side(source, half, wanted):
    assert self_source(source, half) == wanted


@pytest.mark.parametrize("source", ["self", "self:", "self:0", "self:x", "self:-3", "self:1.5", "self:10:test"])
def test_a_malformed_source_is_refused_with_the_form(source):
    with pytest.raises(ConfigError, match=re.escape(f"--prompts {source} is no number of prompts")):
        self_source(source, "train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"self_temperature": 0.0}, "at 0 all prompts are one"),
        ({"self_temperature": float("nan")}, "--self-temperature"),
        ({"self_top_p": 0.0}, "--self-top-p"),
        ({"self_max_tokens": 1}, "--self-max-tokens"),
        ({"self_seed": -1}, "--self-seed"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        SelfPromptSettings(**settings)


def test_settings_need_the_source_and_the_source_has_no_answers():
    with pytest.raises(ConfigError, match=r"--self-top-p 0.5 has no effect here: it goes with --prompts self:N"):
        SelfPromptSettings(self_top_p=0.5).check("builtin:train", "train")
    with pytest.raises(ConfigError, match="has no answers, which --scorer json reads"):
        SelfPromptSettings().check("self:9", "train", answers_read(("json", None), None))
    SelfPromptSettings(self_top_p=0.5).check("self:9", "train", answers_read(("m:f", None), None))
