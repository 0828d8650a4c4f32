"""The ragged cache against recomputation from scratch, for any pattern of acceptance and any batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_model

from specdistill.decoding.cached_model import CachedModel

FAMILIES = ("llama", "gemma2", "gpt2")
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
