"""One pass over a text and all its masks gives every row the logits that a pass of its own gives: the key test."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, make_model

from specdistill.data import Example, collate
from specdistill.data.mask_tokens import every_mask
from specdistill.decoding import expanded_pass
from specdistill.decoding.expanded_pass import expanded_hidden_states, prove_expanded
from specdistill.errors import ModelError

MASK, TOKENS = 2, 5


def example(prompt, answer):
    return Example("p", tuple(prompt), tuple(answer), (2,) * len(answer), masks=every_mask(len(answer), TOKENS))


# Unequal lengths: rows are padded, both behind the text and behind the masks.
EXAMPLES = [example((3, 5, 9, 4), (6, 7, 8, 20, 33, 9, 12, 1)), example((3, 9, 4), (11, 12, 13))]


def separate(model, one):
    """(anchor, depth) -> logits of a pass over the text up to the anchor, and the masks before that depth."""
    ids, logits = [*one.prompt_ids, *one.answer_ids], {}
    for anchor, count in enumerate(one.masks, len(one.prompt_ids) - 1):
        for masks in range(count + 1):
            passed = model.model(torch.tensor([[*ids[: anchor + 1], *[MASK] * masks]]), use_cache=False)
            logits[anchor, masks] = passed.logits[0, -1]
    return logits


def largest_difference(model):
    batch = collate(EXAMPLES)
    with torch.no_grad():
        real, behind = expanded_hidden_states(model, batch, MASK)
        worst, compared = 0.0, 0
        for row, one in enumerate(EXAMPLES):
            expected = separate(model, one)
            rows = {(anchor, 0): real[row, anchor] for anchor, depth in expected if not depth}
            places = zip(batch.masks.anchors[row].tolist(), batch.masks.depths[row].tolist(), strict=True)
            rows |= {place: behind[row, column] for column, place in enumerate(places) if place[1]}
            assert rows.keys() == expected.keys()
            for place, hidden in rows.items():
                own = model.own_logits(hidden)
                worst = max(worst, float((own - expected[place][: len(own)]).abs().max()))
                compared += 1
    assert compared == (8 + 4 + 4 + 4 + 4 + 3 + 2 + 1) + (3 + 2 + 1), "every anchor at every depth"
    return worst


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_equal_separate_passes(family, attention):
    model = make_model(family, layers=3)
    if family != "gemma2":  # It has eager attention alone.
        model.model.set_attn_implementation(attention)
    if getattr(model.config, "sliding_window", None):
        # A window that hides some of the text from the masks.
        model.config.sliding_window = 4
    prove_expanded(model, "--draft tiny")
    assert largest_difference(model) < 1e-4


@pytest.mark.parametrize(
    "planted", ["sees other anchors", "misses earlier masks", "text behind the anchor", "positions"]
)
def test_a_wrong_mask_is_seen(monkeypatch, planted):
    model, layout = make_model(layers=2), expanded_pass._layout

    def wrong(length, masks):
        positions, unseen = layout(length, masks)
        unseen = unseen.clone()
        if planted == "sees other anchors":
            unseen[:, length:, length] = False
        if planted == "misses earlier masks":
            unseen[:, length + 1, length] = True
        if planted == "text behind the anchor":
            unseen[:, length:, 4] = False
        if planted == "positions":
            positions = torch.arange(positions.shape[1]).expand_as(positions)
        return positions, unseen

    monkeypatch.setattr(expanded_pass, "_layout", wrong)
    assert largest_difference(model) > 1e-3
    if planted != "text behind the anchor":
        with pytest.raises(
            ModelError, match=r"--draft tiny \(llama\) can't become a parallel draft: a pass over several"
        ):
            prove_expanded(model, "--draft tiny")
