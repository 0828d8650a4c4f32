"""Launches of a call: few kernels, many programs for each row, and a decision that no order of programs changes."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from specdistill_kernels import filter_threshold, noise, sample, verify
from specdistill_kernels.verify import fused

DRAFTED, VOCAB = 4, 151936
GROUPS = -(-VOCAB // noise.GROUP)
FILTERS = {"top_k": 50, "top_p": 0.9}
SCAN, SEARCH = "filter_scan_kernel", "filter_threshold_kernel"
PICK, POINTS, COMBINE = "sample_pick_kernel", "verify_points_kernel", "sample_combine_kernel"
STATISTICS, DECIDE, RESAMPLE = "verify_statistics_kernel", "verify_decide_kernel", "verify_resample_kernel"
WEIGHTS, MASSES = "verify_weights_kernel", "verify_masses_kernel"


class _TorchOperations(TorchDispatchMode):
    """Records torch's operations, which launch kernels of their own: all but views and memory without contents."""

    def __init__(self, calls: list) -> None:
        super().__init__()
        self._calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view and not function._schema.name.startswith("aten::empty"):
            self._calls.append((function._schema.name, None))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def launched():
    """Kernels and their grids, recorded in place of running them; and torch's operations."""
    import triton
    from triton.runtime.interpreter import InterpretedFunction

    kind = InterpretedFunction if triton.knobs.runtime.interpret else triton.JITFunction
    calls = []
    with (
        mock.patch.object(kind, "run", lambda kernel, *_, grid, **__: calls.append((kernel.__name__, grid))),
        _TorchOperations(calls),
    ):
        yield calls


def call(rule: str, batch: int, device: str, **settings) -> list:
    """The launches of a verification of `batch` requests as engines hold them: ids and counts are int32."""
    rows = batch * DRAFTED
    target, draft = (torch.zeros(1, VOCAB, dtype=torch.bfloat16).expand(n, -1) for n in (rows + batch, rows))
    ids, cu = torch.zeros(rows, dtype=torch.int32), torch.arange(1, batch + 1, dtype=torch.int32) * DRAFTED
    keys = torch.arange(batch)
    tensors = (tensor.to(device) for tensor in (target, ids, cu, draft, keys))
    target, ids, cu, draft, keys = tensors
    with launched() as calls:
        verify(
            target, ids, cu, None if rule in ("greedy", "argmax_draft") else draft, rule=rule,
            seeds=None if rule == "greedy" else keys, positions=None if rule == "greedy" else keys,
            backend="fused", **settings,
        )  # fmt: skip
    return calls


FEW = {
    "greedy": [PICK, POINTS],
    "argmax_draft": [PICK, POINTS],
    "sampled": [STATISTICS, RESAMPLE],
    "lenient": [STATISTICS, RESAMPLE],
    "block": [STATISTICS, MASSES, RESAMPLE],
}
MANY = FEW | {
    "sampled": [STATISTICS, DECIDE, RESAMPLE],
    "lenient": [STATISTICS, DECIDE, RESAMPLE],
    "block": [STATISTICS, WEIGHTS, MASSES, DECIDE, RESAMPLE],
}


@pytest.mark.parametrize("rule", FEW)
@pytest.mark.parametrize(("batch", "wanted"), [(1, FEW), (8, FEW), (64, MANY)], ids=["1", "8", "64"])
def test_a_verification_launches_these_kernels_and_nothing_else(rule, batch, wanted, device):
    """No tensor is filled with a number, nothing is converted: each would be one more launch."""
    expected = wanted[rule]
    per_request = {
        "temperature": torch.full((batch,), 0.8, device=device),
        "top_k": torch.full((batch,), 50, dtype=torch.int32, device=device),
        "top_p": torch.full((batch,), 0.9, device=device),
    }
    assert [name for name, _ in call(rule, batch, device, temperature=0.8)] == expected
    assert [name for name, _ in call(rule, batch, device, temperature=per_request["temperature"])] == expected
    # Greedy verification has no use for filters.
    filtered = expected if rule == "greedy" else [SCAN, SEARCH, *expected]
    assert [name for name, _ in call(rule, batch, device, temperature=0.8, **FILTERS)] == filtered
    assert [name for name, _ in call(rule, batch, device, **per_request)] in (filtered, [SCAN, SEARCH, *expected])


@pytest.mark.parametrize("batch", [1, 8, 64])
def test_every_row_has_a_program_per_group_of_columns(batch, device):
    """8192 columns a program, in all kernels that go over rows; target and draft rows share their launches."""
    targets, drafts = batch * (DRAFTED + 1), batch * DRAFTED
    grids = dict(call("block", batch, device, temperature=0.8, **FILTERS))
    assert grids[SCAN] == grids[STATISTICS] == (targets + drafts, GROUPS)
    assert grids[SEARCH] == (targets + drafts,)
    assert grids[MASSES] == (drafts, GROUPS) and grids[RESAMPLE] == (batch, GROUPS)
    assert dict(call("argmax_draft", batch, device))[PICK] == (targets, GROUPS)


def test_sampling_and_thresholds_launch_these_kernels(device):
    logits, keys = torch.zeros(3, 20000, device=device), torch.arange(3, device=device)
    with launched() as calls:
        sample(logits, temperature=0.0, backend="fused")
        sample(logits, seeds=keys, positions=keys, temperature=0.7, backend="fused")
        sample(logits, seeds=keys, positions=keys, rounds=keys, stream=noise.DRAFT, top_k=5, backend="fused")
        filter_threshold(logits, top_p=0.9, backend="fused")
    scanned, searched = (SCAN, (3, 3)), (SEARCH, (3,))
    picked, combined = (PICK, (3, 3)), (COMBINE, (3,))
    assert calls == [picked, combined, picked, combined, scanned, searched, picked, combined, scanned, searched]


# Drafts of no token, of one, of as many as are judged at once, and of more.
COUNTS = (0, 1, 8, 11, 3)


def batch_of(vocab: int, dtype: torch.dtype, device: str, counts=COUNTS, closeness=0.1):
    generator = torch.Generator().manual_seed(vocab)
    behind = torch.cat([torch.arange(n + 1) < n for n in counts])
    target = 2 * torch.randn(len(behind), vocab, generator=generator)
    draft = target[behind] + closeness * torch.randn(sum(counts), vocab, generator=generator)
    target, draft = (rows.to(device=device, dtype=dtype) for rows in (target, draft))
    rows = torch.arange(len(draft), device=device)
    ids = sample(draft, seeds=rows, positions=rows, stream=noise.DRAFT)
    if len(counts) > 2:
        # The last request has a placeholder in its middle.
        ids[-2] = -1
    return target, draft, ids, torch.tensor(counts, device=device).cumsum(0)


def decisions(batch, rule, backend, *, apart=False, given=False, **settings):
    target, draft, ids, cu = batch
    keys = torch.arange(len(cu), device=target.device)
    drafts = {"draft_probs": draft.float().softmax(-1)} if given else {"draft_logits": draft}
    with mock.patch.object(fused, "REPEATED_DECISIONS", 0 if apart else fused.REPEATED_DECISIONS):
        got = verify(
            target, ids, cu, **drafts, rule=rule, seeds=977 * keys, positions=keys, lenience=0.8,
            backend=backend, **settings,
        )  # fmt: skip
    return torch.stack(got).tolist()


@pytest.mark.parametrize("rule", ["sampled", "lenient", "block"])
@pytest.mark.parametrize("given", [False, True], ids=["logits", "probabilities"])
def test_long_and_short_drafts_are_decided_as_by_definition(rule, given, device, poisoned_empty):
    """With a launch for the decisions and without; greedy requests among them."""
    batch = batch_of(300, torch.bfloat16, device)
    warm = torch.ones(len(COUNTS), device=device)
    cold = warm.clone()
    cold[[1, 3]] = 0.0
    top_k = torch.tensor([5, 0, 40, 0, 300], device=device)
    # The filters are the same launches on both paths.
    for apart, settings in (
        (False, {}),
        (True, {}),
        (False, {"temperature": cold}),
        (True, {"temperature": cold}),
        (False, {"temperature": 0.7 * warm, "top_k": top_k}),
    ):
        wanted = decisions(batch, rule, "torch", given=given, **settings)
        assert decisions(batch, rule, "fused", apart=apart, given=given, **settings) == wanted
    # An identical draft is kept to its end, but for the placeholder and what follows a row that is no law.
    same = batch_of(300, torch.bfloat16, device, closeness=0.0)
    assert decisions(same, rule, "fused", given=given)[0] == [0, 1, 8, 11, 1]
    same[0][21, 5] = torch.nan
    assert decisions(same, rule, "fused", given=given)[0][3] == 21 - (1 + 2 + 9)


@pytest.mark.parametrize(
    ("vocab", "rule"),
    [(49152, "sampled"), (128256, "argmax_draft"), (128256, "sampled"), (151936, "block"), (262144, "sampled")],
)
def test_filtered_requests_of_large_vocabularies(vocab, rule, device):
    batch = batch_of(vocab, torch.bfloat16, device, counts=(1,))
    settings = {"top_k": 20, "top_p": 0.9, "temperature": 0.8}
    assert decisions(batch, rule, "fused", **settings) == decisions(batch, rule, "torch", **settings)


def test_target_and_draft_may_differ_in_dtype(device):
    target, draft, ids, cu = batch_of(300, torch.float32, device)
    batch = (target.bfloat16(), draft, ids, cu)
    assert decisions(batch, "sampled", "fused", top_k=20) == decisions(batch, "sampled", "torch", top_k=20)


@pytest.mark.parametrize("rule", ["sampled", "block"])
def test_calls_repeat_whatever_program_ends_last(rule, device, poisoned_empty):
    """The interpreter shuffles the programs of every launch, and counters begin with whatever memory held."""
    batch = batch_of(9000, torch.float32, device, counts=(2, 1))
    wanted = decisions(batch, rule, "torch")
    assert [decisions(batch, rule, "fused") for _ in range(5)] == [wanted] * 5


def test_the_last_program_sees_what_the_others_wrote(device, monkeypatch):
    """All programs count by releasing and acquiring device-wide, once their threads have stored: no interpreter would
    notice if they did not."""
    if device != "cpu":
        pytest.skip("looks at what the interpreter is asked for")
    from triton._C.libtriton import ir
    from triton.runtime import interpreter

    builder, seen = interpreter.InterpreterBuilder, []
    atomic, store = builder.create_atomic_rmw, builder.create_masked_store

    def counted(this, kind, pointer, value, mask, order, scope):
        seen.append((order, scope))
        return atomic(this, kind, pointer, value, mask, order, scope)

    def stored(this, *arguments):
        seen.append("store")
        return store(this, *arguments)

    monkeypatch.setattr(builder, "create_atomic_rmw", counted)
    monkeypatch.setattr(builder, "create_masked_store", stored)
    monkeypatch.setattr(builder, "create_barrier", lambda this: seen.append("barrier"))
    decisions(batch_of(20000, torch.float32, device, counts=(1,)), "sampled", "fused")
    ordered = (ir.MEM_SEMANTIC.ACQUIRE_RELEASE, ir.MEM_SYNC_SCOPE.GPU)
    counts = [at for at, event in enumerate(seen) if isinstance(event, tuple)]
    assert len(counts) == 3
    for at in counts:
        assert seen[at] == ordered and seen[at - 1] == "barrier" and seen[at - 5 : at - 1] == ["store"] * 4
    # The next token follows the last count alone.
    assert seen[counts[-1] + 1 :] == ["store"] and counts[0] + 1 < len(seen) and seen[counts[0] + 1] == "store"
