"""Tokens that are compared with the same row of the target: the result of rows of their own, for less work."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels.fused_divergence import (
    DIVERGENCES,
    SoftLabels,
    fused_divergence,
    tiles,
    trimmed_log_probs,
)

ROWS = torch.tensor([2, 0, 1, 1, 2, 0, 3, 2, 1])
"""Nine tokens over five rows, one of which nobody is compared with."""
VOCAB = 40


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Draft's hidden states and head, target's hidden states and head, weights (one of them 0)."""
    generator = torch.Generator().manual_seed(5)
    shapes = (len(ROWS), 6), (VOCAB, 6), (5, 9), (VOCAB, 9)
    draft, head, target, target_head = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    weights = torch.rand(len(ROWS), generator=generator)
    weights[3] = 0
    return [draft.requires_grad_(), head.requires_grad_(), target, target_head, weights]


def results(arguments: list, **settings) -> list[torch.Tensor]:
    """Loss, statistics and gradients."""
    output = fused_divergence(*arguments, **settings)
    return [*output, *torch.autograd.grad(output.loss, arguments[:2])]


@pytest.mark.parametrize("tile_rows", [2, 4, 100])
@pytest.mark.parametrize("backend", ["torch", "fused"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_it_equals_rows_of_ones_own(kind, backend, tile_rows):
    draft, head, target, target_head, weights = inputs()
    more = {
        "kind": kind,
        "labels": torch.arange(len(ROWS)),
        "temperature": 0.7,
        "target_softcap": 3.0,
        "backend": backend,
        "tile_rows": tile_rows,
    }
    shared = results([draft, head, target, target_head, weights], **more, target_rows=ROWS)
    own = results([draft, head, target[ROWS], target_head, weights], **more)
    for one, other in zip(shared, own, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("static", [False, True])
def test_soft_labels_a_trimmed_target_and_static_shapes_share_rows_too(static):
    draft, head, target, target_head, weights = inputs()
    soft = SoftLabels((target @ target_head.T).topk(7).indices, torch.full((5, 7), -3.0))
    ids = torch.arange(VOCAB - 3)
    table = trimmed_log_probs(target, target_head, ids)
    small = head[: len(ids)]
    for name, heads, whole in (("soft_labels", head, soft), ("trimmed_target", small, table), ("", head, None)):
        own = SoftLabels(*(part[ROWS] for part in soft)) if name == "soft_labels" else table[ROWS]
        states = (None, None) if name else (target, target_head)
        expanded = (None, None) if name else (target[ROWS], target_head)
        shared = results(
            [draft, heads, *states, weights],
            **({name: whole} if name else {}),
            target_rows=ROWS,
            static_shapes=static,
        )
        separate = results([draft, heads, *expanded, weights], **({name: own} if name else {}), static_shapes=static)
        for one, other in zip(shared, separate, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_targets_head_is_multiplied_once_for_each_row_that_is_shared(monkeypatch):
    draft, head, target, target_head, weights = inputs()
    multiplied = []
    scores = tiles._scores

    def counted(hidden, own_head, softcap):
        if own_head is not None and own_head.shape[1] == target_head.shape[1]:
            multiplied.append(len(hidden))
        return scores(hidden, own_head, softcap)

    monkeypatch.setattr(tiles, "_scores", counted)
    fused_divergence(draft, head, target, target_head, weights, target_rows=ROWS, backend="torch")
    assert multiplied == [4]


def test_as_many_rows_as_tokens_are_needed():
    draft, head, target, target_head, weights = inputs()
    with pytest.raises(ValueError, match=r"weights and target_rows must have the same number .* \[9, 9, 8\]"):
        fused_divergence(draft, head, target, target_head, weights, target_rows=ROWS[:-1])


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS - 1, "between 0 and 4, the target's last row"),  # -1 was the last row, without a word.
        (ROWS + 2, "between 0 and 4, the target's last row"),
        (ROWS.bool(), r"int64 \[tokens\], got torch.bool \[9\]"),
        (ROWS.to(torch.uint8), r"int64 \[tokens\], got torch.uint8 \[9\]"),
        (ROWS[:, None], r"int64 \[tokens\], got torch.int64 \[9, 1\]"),
    ],
)
def test_rows_that_do_not_exist_are_refused(rows, message, soft):
    draft, head, target, target_head, weights = inputs()
    labels = SoftLabels(torch.zeros(5, 1, dtype=torch.int64), torch.full((5, 1), -1.0))
    states = {"soft_labels": labels} if soft else {}
    given = (None, None) if soft else (target, target_head)
    with pytest.raises(ValueError, match=message):
        fused_divergence(draft, head, *given, weights, target_rows=rows, **states)


@pytest.mark.parametrize("static", [False, True])
def test_numbers_of_rows_may_be_int32(static):
    draft, head, target, target_head, weights = inputs()
    wide, narrow = (
        results([draft, head, target, target_head, weights], target_rows=rows, static_shapes=static)
        for rows in (ROWS, ROWS.int())
    )
    for one, other in zip(wide, narrow, strict=True):
        assert torch.equal(one, other)
