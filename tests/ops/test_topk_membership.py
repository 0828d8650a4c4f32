"""Membership by counting against membership by sorting."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels import topk_membership


@pytest.mark.parametrize("top_k", [1, 3, 25, 100])
def test_equals_torch_topk(top_k):
    torch.manual_seed(0)
    logits, ids = torch.randn(200, 100), torch.randint(0, 100, (200,))
    wanted = (logits.topk(top_k).indices == ids[:, None]).any(-1)
    assert topk_membership(logits, ids, top_k).equal(wanted)


def test_ties_go_to_the_lower_id():
    row = torch.zeros(5, 5)
    assert topk_membership(row, torch.arange(5), 2).tolist() == [True, True, False, False, False]


def test_limits():
    logits, ids = torch.randn(50, 20), torch.randint(0, 20, (50,))
    assert topk_membership(logits, ids, 20).all() and topk_membership(logits, ids, 1000).all()
    assert topk_membership(logits, ids, 1).equal(logits.argmax(-1) == ids)
    with pytest.raises(ValueError, match="top_k >= 1"):
        topk_membership(logits, ids, 0)
