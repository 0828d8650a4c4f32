"""Mask tokens of parallel drafts, by cases worked out by hand: where they stand, what they predict, what is dropped."""

from __future__ import annotations

import pytest
import torch

from specdistill.data import Example, collate
from specdistill.data.mask_tokens import drop_masks, every_mask, lay_out


def one(prompt, answer, masks):
    return Example("p", tuple(prompt), tuple(answer), (2,) * len(answer), masks=masks)


def test_layout_by_hand():
    """Prompt 5 6, answer 7 8 9 1: the anchor of token 7 is 6 at position 1. Two masks behind it predict 8 and 9."""
    batch = collate([one([5, 6], [7, 8, 9, 1], (2, 0, 1, 0)), one([5], [7, 8], (1, 0))])
    masks = batch.masks
    assert masks is not None
    assert masks.anchors.tolist() == [[1, 1, 3], [0, 0, 0]]
    assert masks.depths.tolist() == [[1, 2, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [7, 8, 9, 1, 7, 8]
    assert batch.labels[masks.predicted].tolist() == [8, 9, 1, 8]
    assert masks.predicted_depths.tolist() == [2, 3, 2, 2]


def test_no_mask_predicts_beyond_the_answer():
    assert every_mask(4, 3) == (2, 2, 1, 0)
    assert every_mask(4, 3, anchors=[1]) == (0, 2, 0, 0)
    laid_out = lay_out([2], [2], [(7, 7)])
    assert laid_out.predicted.tolist() == [1], "masks that would predict more are left out"


def test_examples_without_masks_stay_as_they_were():
    assert collate([Example("p", (5,), (6,), (2,))]).masks is None


@pytest.mark.parametrize(("keep", "least"), [(0.5, 0.1), (0.7, 0.2), (1.0, 0.0), (0.3, 0.25)])
def test_dropping_keeps_the_share_of_each_depth(keep, least):
    before = every_mask(1000, 8)
    kept = drop_masks(before, keep, least, "seed")
    for depth in range(1, 8):
        there, stay = (sum(count >= depth for count in masks) for masks in (before, kept))
        # An anchor near the end may have no mask of this depth to keep.
        assert stay == pytest.approx(there * max(keep**depth, least), abs=8)
    assert all(after <= count for after, count in zip(kept, before, strict=True))


@pytest.mark.parametrize("masks", [every_mask(5, 8), every_mask(9, 8), every_mask(48, 8, anchors=[1, 10, 19, 28, 37])])
def test_the_far_guesses_of_a_few_anchors_are_trained_in_some_steps(masks):
    """A share of less than half a mask must not be rounded to none in every step."""
    steps = [drop_masks(masks, 0.5, 0.1, str(step)) for step in range(4000)]
    for depth in range(1, max(masks) + 1):
        there = sum(count >= depth for count in masks) * len(steps)
        stay = sum(count >= depth for kept in steps for count in kept)
        assert stay / there == pytest.approx(max(0.5**depth, 0.1), abs=0.02), depth


def test_dropping_costs_a_small_constant():
    """Published settings at 8 tokens: 3.4 rows a token, where all masks would be 8."""
    assert sum(drop_masks(every_mask(1000, 8), 0.7, 0.2, "s")) / 1000 == pytest.approx(2.37, abs=0.02)
    assert sum(every_mask(1000, 8)) / 1000 == pytest.approx(7, abs=0.03)


def test_dropping_depends_on_its_seed_alone():
    masks = every_mask(50, 4)
    assert drop_masks(masks, 0.5, 0.1, "a") == drop_masks(masks, 0.5, 0.1, "a")
    assert drop_masks(masks, 0.5, 0.1, "a") != drop_masks(masks, 0.5, 0.1, "b")
    assert drop_masks((), 0.5, 0.1, "a") == ()


def test_moving_takes_the_masks_along():
    batch = collate([one([5, 6], [7, 8], (1, 0))]).to(torch.device("cpu"))
    assert batch.masks is not None and batch.masks.anchors.tolist() == [[1]]
