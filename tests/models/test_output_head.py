"""The factor between a head's product and the model's logits, where a softcap flattens the largest of them."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model

from specdistill.models import output_head


@pytest.mark.parametrize("factor", [1.0, 40.0, 150.0])
def test_logits_near_the_cap_tell_nothing_of_the_factor(factor):
    target = make_model("gemma2")
    cap = target.softcap
    assert cap is not None
    with torch.no_grad():
        target.head_weight.mul_(factor)
    ids = torch.tensor([output_head.sample_ids(target.vocab_size, 8)])
    with torch.no_grad():
        largest = target.model(input_ids=ids).logits.abs().max()
        found = output_head.logit_scale(target.model, target.hidden_states(ids), ids, "gemma")
    # The last of them is beyond where a tangent can be turned back.
    assert (largest > 0.99 * cap) == (factor == 150.0)
    assert found == 1.0
