"""Our free drafters against the engines' own, proposal for proposal, on 64 answers that SmolLM2 writes."""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from specdistill.data.prompts import encode, load_prompts
from specdistill.decoding import Sampling
from specdistill.decoding.answers import write_answers
from specdistill.decoding.lookup import TransformersNgram, VllmNgram
from specdistill.decoding.suffix import SuffixMemory, SuffixSettings
from specdistill.progress import Quiet

ANSWERS, TOKENS = 64, 48


@pytest.fixture(scope="module")
def written(smollm2):
    """Answers, and the ids that end one."""
    prompts = load_prompts("builtin:heldout")[:ANSWERS]
    encoded = [encode(prompt, smollm2.tokenizer) for prompt in prompts]
    answers = write_answers(smollm2, prompts, encoded, Sampling(temperature=0.0), TOKENS, 0, Quiet())
    return answers, smollm2.eos_token_ids


def proposals(answers, new_lookup, most, theirs):
    """Compares both after every token of every answer; the number of proposals and of those that are not empty."""
    compared = found = 0
    for answer in answers:
        ours, text = new_lookup(), list(answer.prompt_ids)
        ours.read(text)
        for token in answer.answer_ids:
            ours.read([token])
            text.append(token)
            wanted = theirs(text)
            assert ours.copy(most) == wanted, (answer.prompt_id, len(text))
            compared, found = compared + 1, found + bool(wanted)
    assert compared > 2000 and found > 100
    return compared, found


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="make test-engines runs it in vLLM's environment")
@pytest.mark.parametrize(("smallest", "largest", "most"), [(2, 4, 3), (5, 5, 5), (1, 2, 8)])
def test_vllm_proposes_the_same(written, smallest, largest, most):
    module: Any = importlib.import_module("vllm.v1.spec_decode.ngram_proposer")
    propose = module._find_longest_matched_ngram_and_propose_tokens

    def theirs(text):
        return propose(np.array(text, dtype=np.int32), smallest, largest, 10**6, most).tolist()

    found = proposals(written[0], partial(VllmNgram, smallest, largest), most, theirs)
    print(f"vLLM's ngram {smallest}-{largest}, {most} tokens: (compared, not empty) {found}")


@pytest.mark.parametrize(("largest", "most"), [(2, 10), (3, 4)])
def test_transformers_proposes_the_same(written, largest, most):
    answers, stop_ids = written
    candidates = PromptLookupCandidateGenerator(
        eos_token_id=torch.tensor(sorted(stop_ids)),
        num_output_tokens=most,
        max_matching_ngram_size=largest,
        max_length=10**6,
    )

    def theirs(text):
        return candidates.get_candidates(torch.tensor([text]))[0][0, len(text) :].tolist()

    found = proposals(answers, partial(TransformersNgram, largest, stop_ids), most, theirs)
    print(f"transformers' prompt lookup up to {largest}, {most} tokens: (compared, not empty) {found}")


def test_arctic_inference_proposes_the_same(written):
    if importlib.util.find_spec("arctic_inference") is None:
        pytest.skip("arctic_inference, which vLLM's suffix decoding calls, is not installed")
    module: Any = importlib.import_module("arctic_inference.suffix_decoding")
    settings, most = SuffixSettings(), 8
    cache, memory = module.SuffixDecodingCache(settings.depth, 10_000), SuffixMemory(settings)
    requests = iter(range(ANSWERS))
    number = -1

    def begin():
        nonlocal number
        if number >= 0:
            cache.stop_request(number)
        number = next(requests)
        return memory()

    def theirs(text):
        if number not in cache.active_requests:
            cache.start_request(number, text[:-1])
        cache.add_active_response(number, text[-1:])
        end = text[-settings.depth :]
        draft = cache.speculate(
            number,
            end,
            max_spec_tokens=most,
            max_spec_factor=settings.factor,
            min_token_prob=settings.least_probability,
        )
        return list(draft.token_ids)

    found = proposals(written[0], begin, most, theirs)
    print(f"Arctic Inference's suffix decoding, {most} tokens: (compared, not empty) {found}")
