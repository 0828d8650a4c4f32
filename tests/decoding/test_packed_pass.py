"""Texts that share rows of a pass: each has the hidden states of a pass of its own, or the model is refused."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from family_models import family_model
from tiny_models import FAMILIES, make_model

from specdistill.data import Example, collate
from specdistill.decoding import packed_pass
from specdistill.decoding.packed_pass import packed_hidden_states, plan_rows, predicting_states, why_unpacked

LENGTHS = [23, 4, 12, 30, 7, 9, 2, 18]
"""Texts longer and shorter than the tiny models' windows, of 8 tokens."""


def texts(lengths=LENGTHS, seed=0):
    """Texts of these lengths, of which about half is the prompt."""
    drawn = random.Random(seed)
    examples = []
    for number, length in enumerate(lengths):
        prompt = max(1, length // 2)
        ids = tuple(drawn.randrange(5, 65) for _ in range(length))
        examples.append(Example(str(number), ids[:prompt], ids[prompt:], (2,) * (length - prompt)))
    return examples


def alone(model, one):
    """States that predict the answer, from a pass over this text only."""
    ids = torch.tensor([one.prompt_ids + one.answer_ids])
    return model.hidden_states(ids)[0, len(one.prompt_ids) - 1 : -1]


def packing(model):
    return dataclasses.replace(model, packs=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_a_pass_of_its_own_in_the_order_of_the_labels(family):
    model, examples = packing(make_model(family)), texts()
    batch = collate(examples)
    assert why_unpacked(model) is None and len(plan_rows(LENGTHS, 32)) < len(LENGTHS)
    with torch.no_grad():
        states = predicting_states(model, batch)
        wanted = torch.cat([alone(model, one) for one in examples])
    assert states.shape == (batch.num_response_tokens, 32)
    torch.testing.assert_close(states, wanted, rtol=1e-4, atol=1e-4)


def test_a_text_is_the_same_to_the_bit_whatever_lies_beside_it():
    model, examples = packing(make_model()), texts()
    others = [examples[0], *texts(seed=1)[1:]]
    with torch.no_grad():
        first, second = (predicting_states(model, collate(batch)) for batch in (examples, others))
    own = len(examples[0].answer_ids)
    assert torch.equal(first[:own], second[:own]) and not torch.equal(first[own:], second[own:])


def test_no_pass_holds_more_tokens_than_its_rows():
    """The network reads the planned rows and nothing else: where padding would come back, so would its cost."""
    model, shapes = packing(make_model()), []
    model.model.model.register_forward_pre_hook(
        lambda module, positional, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        predicting_states(model, collate(texts()))
        predicting_states(dataclasses.replace(model, packs=False), collate(texts()))
    rows = plan_rows(LENGTHS, 32)
    assert shapes == [(len(rows), max(sum(LENGTHS[text] for text in row) for row in rows)), (8, 30)]
    assert sum(LENGTHS) == 105 and shapes[0] == (3, 37)


def test_rows_hold_every_text_once_and_are_balanced():
    rows = plan_rows(LENGTHS, 32)
    assert sorted(text for row in rows for text in row) == list(range(8))
    # By hand, the longest first on the shortest row: 30 + 7, 23 + 9 + 2, 18 + 12 + 4.
    assert sorted(sum(LENGTHS[text] for text in row) for row in rows) == [34, 34, 37]
    assert plan_rows(LENGTHS, 10_000) == [sorted(range(8), key=lambda text: -LENGTHS[text])]


def test_attention_decides_between_few_long_rows_and_many_short_ones():
    """A narrow model pays more for a long row than for padding."""
    lengths = [50] * 8 + [100] * 8
    assert [len(plan_rows(lengths, hidden)) for hidden in (1, 10_000)] == [12, 12]
    # A single odd text: one row without padding costs 6 h + w = 6 h + 310 a token, three rows 6 h + 110 with 20 wasted.
    odd = [100, 100, 110]
    assert [len(plan_rows(odd, hidden)) for hidden in (1, 10_000)] == [3, 1]


@pytest.mark.parametrize("lengths", [[], [9], [20, 20, 20], [5000, 3, 4]])
def test_what_saves_nothing_or_is_long_is_left_alone(lengths):
    assert plan_rows(lengths, 64) == [[text] for text in range(len(lengths))]


def test_texts_of_equal_length_are_read_as_ever():
    model, batch = make_model(), collate(texts([20, 20, 20]))
    with torch.no_grad():
        assert torch.equal(predicting_states(packing(model), batch), predicting_states(model, batch))


def test_rows_stay_below_long_texts():
    """Beyond 2,048 tokens a mask of attention is avoided, and a row of several texts has one."""
    rows = plan_rows([1500, 700, 1400, 600, 100], 100_000)
    assert max(sum([1500, 700, 1400, 600, 100][text] for text in row) for row in rows) <= 2048


@pytest.mark.parametrize(
    ("kind", "reason"), [("mamba", "keep a state"), ("qwen3_next", "keep a state"), ("lfm2", "keep a state")]
)
def test_recurrent_layers_are_not_packed(kind, reason):
    assert reason in (why_unpacked(family_model(kind)) or "")


class Spoiled:
    """The base model of which one argument is lost on the way."""

    def __init__(self, base, **changes):
        self.base, self.changes = base, changes

    def __call__(self, **arguments):
        return self.base(**(arguments | {key: change(arguments) for key, change in self.changes.items()}))


@pytest.mark.parametrize(
    "changes",
    [
        {"position_ids": lambda given: None},
        # Positions are right, and nothing keeps the texts apart: transformers looks for texts only without a mask.
        {"attention_mask": lambda given: torch.ones_like(given["input_ids"])},
    ],
    ids=["positions are lost", "texts see each other"],
)
def test_a_model_that_mixes_texts_is_found_out(monkeypatch, changes):
    model = make_model()
    base = model.base_model
    monkeypatch.setattr(type(model), "base_model", property(lambda self: Spoiled(base, **changes)))
    assert "of the largest state" in (why_unpacked(model) or "")


def test_a_model_that_takes_no_positions_is_not_packed(monkeypatch):
    model = make_model()

    def refusing(**arguments):
        raise TypeError("forward() got an argument that it lacks: position_ids")

    plain = model.base_model
    monkeypatch.setattr(
        type(model),
        "base_model",
        property(lambda self: lambda **given: (refusing if "position_ids" in given else plain)(**given)),
    )
    assert "takes no positions" in (why_unpacked(model) or "")


def test_windows_are_proven_on_a_few_tokens(monkeypatch):
    """Without the texts' own positions a window would reach into other texts, or end too early."""
    model, original = make_model("mistral"), packed_hidden_states
    assert why_unpacked(model) is None

    def without_window(model, batch, lengths, rows):
        window, model.config.sliding_window = model.config.sliding_window, 10_000
        try:
            return original(model, batch, lengths, rows)
        finally:
            model.config.sliding_window = window

    monkeypatch.setattr(packed_pass, "packed_hidden_states", without_window)
    assert "differs by" in (why_unpacked(model) or "")
