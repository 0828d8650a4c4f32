"""Masks of rows of different lengths, pair by pair, for every kind of attention that layers have."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig

from specdistill.decoding.masks import kinds_of_masks, ragged_masks

POSITIONS = torch.tensor([[3, 4], [1, 2]])
EXTENT, WINDOW = 6, 2


def config(*layer_types, **more):
    made = LlamaConfig(num_hidden_layers=max(1, len(layer_types)))
    for name, value in {"layer_types": list(layer_types) or None, **more}.items():
        setattr(made, name, value)
    return made


def seen(mask) -> list[list[list[int]]]:
    """Keys that each new token of each row sees."""
    return [[row.eq(0).nonzero().flatten().tolist() for row in rows[0]] for rows in mask]


FULL = [[[0, 1, 2, 3], [0, 1, 2, 3, 4]], [[0, 1], [0, 1, 2]]]
SLIDING = [[[2, 3], [3, 4]], [[0, 1], [1, 2]]]
CHUNKED = [[[3], [3, 4]], [[0, 1], [0, 1, 2]]]


@pytest.mark.parametrize(
    ("made", "wanted"),
    [
        (config(), FULL),
        (config(sliding_window=WINDOW), SLIDING),
        (config(attention_chunk_size=3), CHUNKED),
        (config("hybrid", "hybrid"), FULL),
        (config("hybrid_sliding", "mlp", sliding_window=WINDOW), SLIDING),
        (config("linear_attention", "full_attention"), FULL),
    ],
    ids=["full", "sliding", "chunked", "hybrid", "hybrid sliding", "with states"],
)
def test_one_kind_is_one_mask(made, wanted):
    assert seen(ragged_masks(made, POSITIONS, EXTENT, torch.float32)) == wanted


def test_several_kinds_have_a_mask_each_and_states_have_none():
    made = config("hybrid", "hybrid_sliding", "mamba", "moe", sliding_window=WINDOW)
    assert kinds_of_masks(made) == ["full_attention", "sliding_attention"]
    masks = ragged_masks(made, POSITIONS, EXTENT, torch.float32)
    assert isinstance(masks, dict)
    assert seen(masks["full_attention"]) == FULL and seen(masks["sliding_attention"]) == SLIDING
    assert masks["mamba"] is None and masks["moe"] is None


def test_what_is_hidden_gets_the_lowest_number_of_the_dtype():
    mask = ragged_masks(config(), POSITIONS, EXTENT, torch.bfloat16)
    assert isinstance(mask, torch.Tensor) and mask.shape == (2, 1, 2, EXTENT)
    assert mask.unique().tolist() == [torch.finfo(torch.bfloat16).min, 0]
