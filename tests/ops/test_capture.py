"""The demands of an engine's captured graph: nothing waits for the GPU, and no shape depends on the data.

Without a GPU the launchers run on fake tensors, which hold no data, so reading a value or deriving a shape from one
fails. On a GPU the same calls are captured and replayed on other data.
"""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from specdistill_kernels import (
    expected_acceptance,
    filter_threshold,
    fused_divergence,
    noise,
    sample,
    topk_membership,
    verify,
)

BATCH, DRAFTED, VOCAB = 3, 6, 300


class Inputs:
    """The tensors of an engine with three requests of 3, 0 and 3 draft tokens; ids and counts are int32, as in vLLM."""

    def __init__(self, device: str, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def logits(*shape: int) -> torch.Tensor:
            return (2 * torch.randn(*shape, generator=generator)).to(device=device, dtype=torch.bfloat16)

        self.target, self.draft = logits(DRAFTED + BATCH, VOCAB), logits(DRAFTED, VOCAB)
        self.probs = self.draft.float().softmax(-1)
        self.ids = self.draft.argmax(-1).int()
        self.cu = torch.tensor([3, 3, 6], dtype=torch.int32, device=device)
        self.seeds = torch.arange(BATCH, device=device) + seed
        self.temperature = torch.tensor([0.7, 1.0, 0.0], device=device)
        self.top_k = torch.tensor([20, 0, 5], device=device)
        self.rows = torch.arange(DRAFTED, device=device)
        # Both tensors are in bfloat16 and small, so that the products are the same in a graph and outside.
        self.hidden, self.heads = logits(2, DRAFTED, 16) / 4, logits(2, VOCAB, 16) / 4
        self.weights = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0, 1.0], device=device)

    def tensors(self):
        return [value for value in vars(self).values() if isinstance(value, torch.Tensor)]


def verifying(rule: str, **drafts: str):
    def call(x: Inputs):
        given = {name: getattr(x, attribute) for name, attribute in drafts.items()}
        return verify(
            x.target, x.ids, x.cu, **given, rule=rule, seeds=x.seeds, positions=x.seeds,
            temperature=x.temperature, top_k=x.top_k, top_p=0.9, backend="fused",
        )  # fmt: skip

    return call


def diverging(x: Inputs):
    output = fused_divergence(
        x.hidden[0], x.heads[0], x.hidden[1], x.heads[1], x.weights, kind="lk_lambda", backend="fused",
        static_shapes=True,
    )  # fmt: skip
    return output.loss, output.per_token, output.alpha


CALLS = {
    "verify greedy": verifying("greedy"),
    "verify argmax_draft": verifying("argmax_draft"),
    "verify sampled": verifying("sampled", draft_logits="draft"),
    "verify sampled, probabilities": verifying("sampled", draft_probs="probs"),
    "verify block": verifying("block", draft_logits="draft"),
    "sample": lambda x: sample(
        x.draft, seeds=x.rows, positions=x.rows, stream=noise.DRAFT, top_k=20, temperature=0.8, backend="fused"
    ),
    "filter_threshold": lambda x: filter_threshold(x.draft, top_p=0.9, min_p=0.01, backend="fused"),
    "topk_membership": lambda x: topk_membership(x.draft, x.ids, 25, backend="fused"),
    "expected_acceptance": lambda x: expected_acceptance(x.target[:DRAFTED], x.draft, x.ids, backend="fused"),
    "fused_divergence": diverging,
}


@pytest.fixture
def launched(device):
    """The names of the kernels that were launched. They don't run."""
    if device == "cuda":
        pytest.skip("a GPU captures the real graph, below")
    from triton.runtime.interpreter import InterpretedFunction

    names = []
    with mock.patch.object(InterpretedFunction, "run", lambda kernel, *_, **__: names.append(kernel.__name__)):
        yield names


@pytest.mark.parametrize("name", CALLS)
def test_launchers_read_no_value(name, launched):
    with FakeTensorMode(allow_non_fake_inputs=False), torch.inference_mode():
        CALLS[name](Inputs("cpu"))
    assert launched


def test_fake_tensors_do_catch_what_reads_a_value(launched):
    """A planted error: skipping tokens of weight 0, as training does, makes a shape that depends on the data."""
    with FakeTensorMode(), pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        x = Inputs("cpu")
        fused_divergence(x.hidden[0], x.heads[0], x.hidden[1], x.heads[1], x.weights, backend="fused")


@pytest.mark.parametrize("name", CALLS)
def test_a_captured_graph_replays_on_other_data(name, device):
    if device != "cuda":
        pytest.skip("needs a GPU; fake tensors stand in for it above")
    call, x, other = CALLS[name], Inputs(device), Inputs(device, seed=1)
    with torch.inference_mode():
        call(x)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = call(x)
        for mine, new in zip(x.tensors(), other.tensors(), strict=True):
            mine.copy_(new)
        graph.replay()
        wanted = call(other)
    captured, wanted = (output if isinstance(output, tuple) else (output,) for output in (captured, wanted))
    for got, expected in zip(captured, wanted, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", ["torch", "fused"])
def test_idle_tokens_may_hold_anything_with_static_shapes(backend, device):
    x = Inputs(device)
    idle = x.weights == 0
    results = []
    for static in (False, True):
        hidden = x.hidden[0].clone().masked_fill_(idle[:, None], torch.nan).requires_grad_()
        head = x.heads[0].clone().requires_grad_()
        target = x.hidden[1].clone().masked_fill_(idle[:, None], torch.inf)
        output = fused_divergence(
            hidden, head, target, x.heads[1], x.weights, backend=backend, static_shapes=static, tile_rows=4
        )
        output.loss.backward()
        results.append([*output, hidden.grad, head.grad])
    for skipped, masked in zip(*results, strict=True):
        torch.testing.assert_close(masked, skipped)
    assert (results[1][1][idle] == 0).all()


def test_idle_labels_may_hold_anything_with_static_shapes(device):
    x = Inputs(device)
    labels = torch.where(x.weights == 0, -100, x.ids.long())
    arguments = (x.hidden[0], x.heads[0], None, None, x.weights)
    wanted, got = (
        fused_divergence(*arguments, kind="ce", labels=labels, backend="fused", static_shapes=static)
        for static in (False, True)
    )
    torch.testing.assert_close(got.loss, wanted.loss)
    torch.testing.assert_close(got.per_token, wanted.per_token)
