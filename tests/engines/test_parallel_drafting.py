"""vLLM's own parallel drafting against ours: the same weights guess the same tokens, round for round."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="make test-engines runs these in vLLM's environment")

from parallel_drafts import make_parallel, recorded_proposals
from real_vllm import answers_and_proposals
from tiny_models import make_model, make_tokenizer, save

from specdistill import load_model
from specdistill.decoding import Sampling, SpeculativeDecoder

MASK, TOKENS, NEW = 66, 5, 30
PROMPTS = [[3, 7, 8, 4], [3, 9, 4], [3, *range(30, 62), 4]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    # vLLM's attention on CPUs wants heads of at least 32, and every row of the head is an id to it.
    shape = {"layers": 3, "hidden": 128, "vocab_size": 72, "tokenizer": make_tokenizer(words=67)}
    save(make_model(**shape), folder / "target")
    # The target's own weights, so that first tokens are accepted, with a mask token.
    save(make_parallel(mask_id=MASK, **shape), folder / "draft")
    return folder


def test_vllm_proposes_the_same_token_for_token(files, monkeypatch):
    settings = {"method": "draft_model", "model": str(files / "draft"), "parallel_drafting": True}
    settings |= {"num_speculative_tokens": TOKENS}
    answers, theirs = answers_and_proposals(monkeypatch, files / "target", settings, PROMPTS, NEW, max_model_len=96)
    target, draft = load_model(str(files / "target")), load_model(str(files / "draft"), "draft")
    for model in (target, draft):
        model.model.generation_config.eos_token_id = model.config.eos_token_id = None
        model.tokenizer.eos_token = None
    calls = recorded_proposals(monkeypatch)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=TOKENS, sampling=Sampling(temperature=0.0))
    compared, different = 0, set()
    for prompt, answer, proposed in zip(PROMPTS, answers, theirs, strict=True):
        calls.clear()
        (written,) = decoder.generate([prompt], max_new_tokens=NEW, seeds=[0])
        assert written.token_ids == answer
        ours = [ids for _, _, (ids,) in calls]
        assert len(ours) <= len(proposed)
        for own, other in zip(ours, proposed, strict=False):
            # Ours proposes no more than could be kept at the answer's end.
            assert own == other[: len(own)]
            compared, different = compared + len(own), different | set(own[1:])
    print(f"guessed tokens compared: {compared}, different ids behind masks: {len(different)}")
    assert compared > 100 and len(different) > 5
