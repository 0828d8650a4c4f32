"""Free drafters propose what each engine's own does: cases by hand, and transformers' own class on many texts."""

from __future__ import annotations

import random

import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from specdistill.decoding.lookup import LlamaCppNgram, TransformersNgram, VllmNgram
from specdistill.decoding.suffix import SuffixMemory, SuffixSettings


def copied(lookup, text, most=3):
    lookup.read(text)
    return lookup.copy(most)


def repeating_text(generator: random.Random, length: int, vocab: int) -> list[int]:
    """Random tokens, and now and then a copy of an earlier run."""
    text: list[int] = []
    while len(text) < length:
        if text and generator.random() < 0.3:
            start = generator.randrange(len(text))
            text += text[start : start + generator.randrange(1, 12)]
        else:
            text.append(generator.randrange(vocab))
    return text[:length]


@pytest.mark.parametrize(
    ("text", "sizes", "wanted"),
    [
        # The first of two places, where the run has two tokens.
        ([1, 2, 7, 8, 1, 2, 9, 9, 1, 2], (2, 3), [7, 8, 1]),
        # A longer run wins over an earlier place.
        ([2, 3, 7, 1, 2, 3, 8, 1, 2, 3], (2, 3), [8, 1, 2]),
        # Runs may overlap their own copy.
        ([4, 4, 4, 4], (2, 4), [4]),
        # One token is too short.
        ([1, 2, 3, 1], (2, 4), []),
        ([1, 2, 3, 1], (1, 4), [2, 3, 1]),
        ([1], (1, 4), []),
    ],
)
def test_vllm_takes_the_longest_run_and_of_those_the_first(text, sizes, wanted):
    assert copied(VllmNgram(*sizes), text) == wanted


def test_transformers_cuts_before_the_end_of_an_answer_and_looks_no_further():
    stop = frozenset({9})
    assert copied(TransformersNgram(2, stop), [1, 2, 5, 9, 1, 2]) == [5]
    # The run of two is followed by an end: nothing is left, and the run of one is not tried.
    assert copied(TransformersNgram(2, stop), [2, 6, 1, 2, 9, 1, 2]) == []


@pytest.mark.parametrize("vocab", [2, 5, 40])
@pytest.mark.parametrize("largest", [1, 2, 4])
def test_transformers_own_class_proposes_the_same(vocab, largest):
    generator = random.Random(vocab * 10 + largest)
    theirs = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor([0]), num_output_tokens=5, max_matching_ngram_size=largest, max_length=10**6
    )
    proposed = 0
    for _ in range(5):
        text = repeating_text(generator, 90, vocab)
        ours = TransformersNgram(largest, frozenset({0}))
        ours.read(text[:3])
        for end in range(3, len(text)):
            wanted = theirs.get_candidates(torch.tensor([text[:end]]))[0][0, end:].tolist()
            assert ours.copy(5) == wanted
            proposed += bool(wanted)
            ours.read([text[end]])
    assert proposed > 100


def test_llama_cpp_takes_the_last_place_and_only_long_copies():
    # Runs of 2, copies of 2 to 3: the text must be longer than 6 without its last token.
    assert copied(LlamaCppNgram(2, 3), [0, 1, 2, 7, 7, 1, 2, 8, 6, 5, 1, 2], most=9) == [8, 6, 5]
    assert copied(LlamaCppNgram(2, 3), [0, 1, 2, 7, 7, 1, 2, 8, 6, 5, 1, 2], most=2) == [8, 6]
    # Two tokens follow the place, and the last one of the text is not searched: one is left, which is too short.
    assert copied(LlamaCppNgram(2, 3), [0, 0, 3, 3, 4, 5, 1, 2, 1, 2], most=9) == []
    # At the very beginning it does not look.
    assert copied(LlamaCppNgram(2, 3), [1, 2, 7, 7, 6, 5, 4, 3, 1, 2], most=9) == []
    # Too short a text.
    assert copied(LlamaCppNgram(2, 3), [0, 1, 2, 7, 1, 2], most=9) == []


def suffix_of(settings, prompt, answer, memory=None):
    lookup = (memory or SuffixMemory(settings))()
    lookup.read(prompt)
    if answer:
        lookup.read(answer)
    return lookup


def test_suffix_goes_on_with_the_most_frequent_token_while_it_is_likely():
    # 1 stands four times, the end of the text included: 2 followed twice, 3 once. After 1 2 came 5 and 6 once each.
    text = [1, 2, 5, 1, 3, 1, 2, 6, 1]
    assert suffix_of(SuffixSettings(factor=3.0, least_probability=0.3), text, []).copy(3) == [2]
    assert suffix_of(SuffixSettings(factor=3.0, least_probability=0.25), text, []).copy(3) == [2, 5, 1]
    assert suffix_of(SuffixSettings(factor=3.0, least_probability=0.51), text, []).copy(3) == []
    # No longer than what was looked up: one token of the end occurred before.
    assert suffix_of(SuffixSettings(), text, []).copy(3) == [2]


def test_suffix_remembers_answers_of_earlier_texts_but_not_their_prompts():
    memory = SuffixMemory(SuffixSettings(factor=4.0))
    suffix_of(None, [9, 9, 7, 8], [1, 2, 3, 4], memory)
    assert suffix_of(None, [6], [1, 2], memory).copy(8) == [3, 4]
    assert suffix_of(None, [6], [7], memory).copy(8) == [], "8 followed in a prompt only"


def test_the_order_of_equally_frequent_tokens_is_the_originals():
    # 5 comes to two occurrences before 6 does, which then stands in front of it: so does the original's list.
    assert suffix_of(SuffixSettings(), [1, 5, 1, 6, 1, 5, 0, 1], []).copy(1) == [5]
    assert suffix_of(SuffixSettings(), [1, 5, 1, 6, 1, 5, 1, 6, 0, 1], []).copy(1) == [6]
