"""Every type of model that people serve, tiny and random: decoded exactly, or refused with what keeps it from that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import CUT_CHANGES, DECODE, NO_CUT, PREDICT, family_model
from tiny_models import perturbed

from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.decoding.proof import prove
from specdistill.errors import ModelError
from specdistill.models import cut_draft
from specdistill.models.cut import only_layers

ROOT = Path(__file__).parents[2]
GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21], [30, 31, 32, 33, 34]]
SETTINGS = {"max_new_tokens": 12, "seeds": [0, 1, 2]}


def generated(model):
    """Greedy answers of transformers' own `generate`, one prompt at a time."""
    model.model.generation_config.eos_token_id = 1
    rows = [
        model.model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), pad_token_id=0,
            max_new_tokens=SETTINGS["max_new_tokens"], do_sample=False,
        )
        for prompt in PROMPTS
    ]  # fmt: skip
    return [row[0, len(prompt) :].tolist() for row, prompt in zip(rows, PROMPTS, strict=True)]


def written(results):
    return [result.token_ids for result in results]


def logits_agree(model):
    """Logits from hidden states are the model's own: what predicted acceptance and every loss compute with."""
    ids = torch.tensor([PROMPTS[0]])
    with torch.inference_mode():
        own = model.own_logits(model.hidden_states(ids))
        torch.testing.assert_close(own, model.model(ids).logits[..., : model.vocab_size], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", DECODE)
def test_speculative_output_is_the_targets_own(kind):
    target = family_model(kind)
    logits_agree(target)
    assert prove(target).rolls_back, prove(target).reason
    draft = perturbed(target, 0.05)
    wanted = generated(target)
    greedy = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=GREEDY)
    assert written(greedy.generate(PROMPTS, **SETTINGS)) == wanted
    # A seed writes the same answer with a draft of this rule and without any.
    plain = generate_plain(target, PROMPTS, sampling=Sampling(), **SETTINGS)
    drafted = SpeculativeDecoder(target, draft, num_draft_tokens=3, sampling=Sampling(), rule="argmax_draft")
    assert written(drafted.generate(PROMPTS, **SETTINGS)) == written(plain)
    itself = SpeculativeDecoder(target, target, num_draft_tokens=3, sampling=Sampling())
    for result in itself.generate(PROMPTS, **SETTINGS):
        assert all(entry.accepted == entry.proposed for entry in result.rounds)


@pytest.mark.parametrize("kind", PREDICT)
def test_what_cant_drop_tokens_still_writes_and_predicts(kind):
    target = family_model(kind)
    logits_agree(target)
    proof = prove(target)
    assert not proof.rolls_back and PREDICT[kind] in proof.reason
    assert written(generate_plain(target, PROMPTS, sampling=GREEDY, **SETTINGS)) == generated(target)
    with pytest.raises(ModelError, match="bench --engine"):
        SpeculativeDecoder(target, target, num_draft_tokens=3, sampling=GREEDY)


@pytest.mark.parametrize("kind", [*DECODE, *PREDICT])
def test_a_cut_is_the_target_without_the_other_layers(kind):
    target, layers, ids = family_model(kind), [1, 3], torch.tensor([PROMPTS[0]])
    if kind in NO_CUT:
        with pytest.raises(ModelError, match=r"layers can't be cut out of a .* name a smaller sibling"):
            cut_draft(target, layers)
        return
    draft = cut_draft(target, layers)
    assert draft.config.num_hidden_layers == 2
    with torch.inference_mode():
        with only_layers(target, layers):
            wanted = target.logits(target.hidden_states(ids))
        found = draft.logits(draft.hidden_states(ids))
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4) != (kind in CUT_CHANGES)


def test_the_table_in_the_docs_is_made_of_these_types():
    done = subprocess.run(
        [sys.executable, "tests/support/family_table.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_at_least_fifty_types_are_tried():
    assert len({*DECODE, *PREDICT}) >= 50
