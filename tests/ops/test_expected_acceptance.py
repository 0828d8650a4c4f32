"""Acceptance statistics against hand-computed values and identities."""

from __future__ import annotations

import math

import pytest
import torch

from specdistill_kernels import expected_acceptance


def logits_of(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_hand_computed_on_three_tokens():
    got = expected_acceptance(logits_of(0.5, 0.3, 0.2), logits_of(0.2, 0.2, 0.6), torch.tensor([0]))
    assert float(got.sampled) == pytest.approx(0.6)
    assert float(got.argmax_draft) == pytest.approx(0.2)
    assert float(got.greedy) == 0 and int(got.draft_argmax) == 2
    assert float(got.token_acceptance) == pytest.approx(0.4)
    entropy = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert float(got.target_entropy) == pytest.approx(entropy)


def test_a_draft_equal_to_its_target_is_accepted_under_every_rule():
    torch.manual_seed(0)
    logits = torch.randn(20, 300) * 5
    got = expected_acceptance(logits, logits.clone(), torch.randint(0, 300, (20,)))
    torch.testing.assert_close(got.sampled, torch.ones(20))
    assert (got.greedy == 1).all() and (got.token_acceptance == 1).all() and (got.fkl == 0).all()
    torch.testing.assert_close(got.argmax_draft, logits.softmax(-1).max(-1).values)


def test_token_acceptance_averages_to_alpha_over_the_targets_distribution():
    torch.manual_seed(0)
    target, draft = torch.randn(2, 1, 6, dtype=torch.float64)
    rows = expected_acceptance(target.expand(6, -1), draft.expand(6, -1), torch.arange(6))
    torch.testing.assert_close((target.softmax(-1)[0] * rows.token_acceptance).sum(), rows.sampled[0])


def test_filtered_ids_have_probability_zero_and_give_no_nan():
    target = torch.tensor([[0.0, 1.0, -torch.inf, -torch.inf]])
    draft = torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]])
    got = expected_acceptance(target, draft, torch.tensor([1]))
    assert float(got.token_acceptance) == 0 and float(got.fkl) == math.inf
    assert math.isfinite(float(got.target_entropy)) and math.isfinite(float(got.draft_entropy))
    assert float(got.sampled) == pytest.approx(1 / (1 + math.e))


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tiles_and_strides_do_not_matter(rows, dtype):
    torch.manual_seed(0)
    wide = torch.randn(10, 2, 64).to(dtype)
    target, draft = wide[:, 0], wide[:, 1]
    ids = torch.randint(0, 64, (10,))
    untiled = expected_acceptance(target.contiguous(), draft.contiguous(), ids)
    tiled = expected_acceptance(target, draft, ids, tile_rows=rows)
    for one, other in zip(untiled, tiled, strict=True):
        torch.testing.assert_close(one, other)


def test_empty_and_bad_shapes():
    assert len(expected_acceptance(torch.empty(0, 5), torch.empty(0, 5)).sampled) == 0
    with pytest.raises(ValueError, match="slice both to the shared vocabulary"):
        expected_acceptance(torch.empty(2, 5), torch.empty(2, 6))
    with pytest.raises(ValueError, match="token_ids"):
        expected_acceptance(torch.empty(2, 5), torch.empty(2, 5), torch.tensor([1]))
