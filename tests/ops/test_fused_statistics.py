"""The Triton kernels against the float64 definition, in the interpreter here and natively on a GPU."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels import expected_acceptance, topk_membership
from specdistill_kernels.backend import choose
from specdistill_kernels.expected_acceptance.reference import acceptance_statistics

pytestmark = pytest.mark.usefixtures("poisoned_empty")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# A vocabulary under one block, a ragged one over two blocks, and those of real families.
VOCABULARIES = (17, 1000, 5000, 32000, 49152, 151936, 262144)


def logits(rows, vocab, dtype, device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = 3 * torch.randn(2, rows, vocab, generator=generator)
    return made.to(dtype).to(device).unbind(0)


def check_statistics(target, draft, ids):
    """Asserts an error against the float64 truth of at most twice torch's in the same precision, plus one rounding."""
    fused = expected_acceptance(target, draft, ids, backend="fused")
    plain = acceptance_statistics(target.cpu(), draft.cpu(), ids.cpu())
    truth = acceptance_statistics(target.cpu().double(), draft.cpu().double(), ids.cpu())
    assert fused.draft_argmax.cpu().equal(truth.draft_argmax)
    for name, ours, theirs, wanted in zip(fused._fields, fused, plain, truth, strict=True):
        if name == "draft_argmax":
            continue
        ours, theirs = ours.cpu().double(), theirs.double()
        assert ours.isnan().equal(wanted.isnan()), name
        exact = ~wanted.isfinite()
        assert ours[wanted.isinf()].equal(wanted[wanted.isinf()]), name
        if exact.all():
            continue
        error, plain_error = (ours - wanted)[~exact].abs().max(), (theirs - wanted)[~exact].abs().max()
        rounding = 4e-7 * wanted[~exact].abs().max().clamp(min=1)
        if name == "token_acceptance" and target.dtype == torch.float32:
            # A ratio of probabilities carries the rounding of two log-probabilities, which are as large as the logits.
            largest = torch.cat([target, draft]).nan_to_num(0, 0, 0).abs().max().cpu().double()
            rounding = rounding.clamp(min=6e-8 * float(largest))
        assert error <= 2 * plain_error + rounding, (name, error, plain_error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_expected_acceptance(device, vocab, dtype):
    rows = 3 if vocab > 40000 else 7
    target, draft = logits(rows, vocab, dtype, device)
    # One row where the draft is the target, one where they are nearly points.
    draft = draft.clone()
    draft[0] = target[0]
    target = target.clone()
    target[1, vocab // 2] += 30
    ids = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(vocab))
    check_statistics(target, draft, ids.to(device))


def test_non_contiguous_rows_and_columns(device):
    wide = logits(4, 6000, torch.bfloat16, device)
    rows = torch.stack(wide, 1)
    ids = torch.tensor([0, 5999, 7, 8], device=device)
    check_statistics(rows[:, 0], rows[:, 1], ids)
    columns = torch.stack(wide, 2)
    check_statistics(columns[..., 0], columns[..., 1], ids)


def test_minus_infinity_is_probability_zero(device):
    target, draft = (rows.clone() for rows in logits(4, 5000, torch.float32, device))
    target[:, 4000:] = -torch.inf
    draft[:, :500] = -torch.inf
    draft[2] = -torch.inf
    draft[2, 17] = 0.0
    check_statistics(target, draft, torch.tensor([3, 700, 17, 4500], device=device))


def test_equal_logits_tie_to_the_lowest_id(device):
    flat = torch.zeros(2, 9000, device=device)
    check_statistics(flat, flat.clone(), torch.tensor([0, 8999], device=device))
    got = expected_acceptance(flat, flat, backend="fused")
    assert got.draft_argmax.tolist() == [0, 0] and got.token_acceptance is None


def test_rows_without_a_meaning_are_nan_and_spoil_no_other(device):
    target, draft = (rows.clone() for rows in logits(4, 5000, torch.bfloat16, device))
    target[0, 4999] = torch.nan
    draft[1] = -torch.inf
    ids = torch.tensor([1, 2, 3, 4], device=device)
    for backend in ("fused", "torch"):
        got = expected_acceptance(target, draft, ids, backend=backend)
        assert got.draft_argmax[:2].tolist() == [0, 0]
        for name, values in zip(got._fields, got, strict=True):
            if name != "draft_argmax":
                assert values[:2].isnan().all() and not values[2:].isnan().any(), (backend, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", VOCABULARIES)
def test_topk_membership(device, vocab, dtype):
    rows = 4 if vocab > 40000 else 12
    scores, _ = logits(rows, vocab, dtype, device, seed=1)
    best = scores.float().topk(min(30, vocab)).indices
    ids = torch.stack([best[row, min(row * 3, best.shape[1] - 1)] for row in range(rows)])
    for top_k in (1, 9, 25, vocab):
        fused = topk_membership(scores, ids, top_k, backend="fused")
        assert fused.equal(topk_membership(scores, ids, top_k, backend="torch"))


def test_topk_membership_edges(device):
    flat = torch.zeros(3, 9000, device=device)
    ids = torch.tensor([0, 4, 8999], device=device)
    assert topk_membership(flat, ids, 5, backend="fused").tolist() == [True, True, False]
    hidden = torch.full((2, 9000), -torch.inf, device=device)
    hidden[:, 3] = 0.0
    ids = torch.tensor([3, 8999], device=device)
    assert topk_membership(hidden, ids, 1, backend="fused").tolist() == [True, False]
    assert topk_membership(hidden, ids, 9000, backend="fused").tolist() == [True, True]
    hidden[1, 8999] = torch.nan
    for backend in ("fused", "torch"):
        assert topk_membership(hidden, ids, 9000, backend=backend).tolist() == [True, False]


def test_row_addresses_are_64_bit(device):
    """The rows are so far apart that a 32-bit offset overflows. The pages between them are never touched."""
    if device != "cpu":
        pytest.skip("reserves 4 GiB of address space, which only a CPU gives for free")
    storage = torch.zeros(0, dtype=torch.bfloat16)
    storage.untyped_storage().resize_(2 * (2**31 + 2**20))
    spread = storage.as_strided((2, 64), (2**31, 1))
    spread[0], spread[1] = 1.0, torch.arange(64).bfloat16()
    got = topk_membership(spread, torch.tensor([0, 63]), 1, backend="fused")
    assert got.tolist() == [True, True]


def test_backend_is_chosen_openly(device, monkeypatch):
    cpu = torch.zeros(1)
    assert choose("auto", cpu) == "torch" and choose("torch", cpu) == "torch"
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        choose("cuda", cpu)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match="needs a GPU, the data is on cpu"):
        choose("fused", cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs the package triton"):
        choose("fused", cpu)
