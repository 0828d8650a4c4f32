"""Thresholds of the kernels: exactly the logit that the definition keeps last, and a row is read once to find it."""

from __future__ import annotations

import pytest
import torch

from specdistill_kernels import filter_threshold
from specdistill_kernels.filter_threshold import fused
from specdistill_kernels.sampling_settings import KernelSettings

pytestmark = pytest.mark.usefixtures("poisoned_empty")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FILTERS = {
    "top-k 1": {"top_k": 1},
    "top-k 50": {"top_k": 50},
    "top-k 700": {"top_k": 700},
    "all but one": {"top_k": 8999},
    "top-p tiny": {"top_p": 1e-6},
    "top-p 0.3": {"top_p": 0.3},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.9999": {"top_p": 0.9999},
    "both": {"top_k": 50, "top_p": 0.9},
    "wide and cool": {"top_k": 3000, "top_p": 0.5, "temperature": 0.3},
    "hot": {"top_p": 0.95, "temperature": 4.0},
    "min-p": {"min_p": 0.02},
    "everything": {"top_k": 40, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
}


def rows_of(kind: str, vocab: int, dtype: torch.dtype) -> torch.Tensor:
    """Two rows of a kind that is hard for some way of searching."""
    random = torch.randn(2, vocab, generator=torch.Generator().manual_seed(vocab))
    rows = {
        "peaked": 6 * random,
        "flat": 0.05 * random,
        "positive and negative": random,
        "far away": 1000 + random,
        "few values": (2 * random).round(),
        "equal": torch.zeros(2, vocab),
        "heaped": torch.where(torch.arange(vocab) < 200, 5 + random, random - 20),
        "mostly -inf": torch.where(random > 1.5, random, -torch.inf),
        "points": torch.where(torch.arange(vocab) % 97 == 5, 3.0, -torch.inf).expand(2, -1),
    }[kind]
    return rows.to(dtype)


def check(logits: torch.Tensor, **settings) -> None:
    """Asserts that both backends keep the same ids; for top-p those that rounding can't decide otherwise."""
    lowest = {name: filter_threshold(logits, backend=name, **settings) for name in ("torch", "fused")}
    wanted, kept = (logits.float() >= lowest[name][:, None] for name in ("torch", "fused"))
    if kept.equal(wanted):
        return
    # Then the mass of the smaller set is top_p's share of the row to a few roundings.
    assert "top_p" in settings and kept.ne(wanted).any()
    scores = logits.double()
    if "top_k" in settings:
        kth = scores.topk(settings["top_k"]).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    law = (scores / settings.get("temperature", 1.0)).softmax(-1)
    smaller = torch.minimum((law * kept).sum(-1), (law * wanted).sum(-1))
    differs = kept.ne(wanted).any(-1)
    assert (smaller[differs] - settings["top_p"]).abs().max() < 2e-6


@pytest.mark.parametrize("settings", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize(
    "kind",
    ["peaked", "flat", "positive and negative", "far away", "few values", "equal", "heaped", "mostly -inf", "points"],
)
def test_thresholds_are_the_definitions(kind, settings, device):
    check(rows_of(kind, 9000, DTYPES[len(kind) % 3]).to(device), **settings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab", [17, 64, 65, 8192, 49152, 151936, 262144])
def test_thresholds_of_any_vocabulary(vocab, dtype, device):
    rows = rows_of("peaked", vocab, dtype).to(device)
    for settings in ({"top_k": 20}, {"top_p": 0.9}, {"top_k": 50, "top_p": 0.9}):
        check(rows, **settings)


def test_rows_with_other_settings_and_no_law_disturb_nobody(device):
    """Rows that filter nothing are not read at all; those without a law give something and end."""
    logits = rows_of("peaked", 9000, torch.float32).repeat(4, 1).to(device)
    logits[1], logits[2, 70], logits[3, 8999] = -torch.inf, torch.nan, torch.inf
    top_k = torch.tensor([5, 5, 5, 5, 0, 9, 9001, 3], device=device)
    temperature = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.7, 0.7], device=device)
    got = filter_threshold(logits, top_k=top_k, temperature=temperature, backend="fused")
    # The K-th largest logit itself, or nothing.
    assert got[0] == logits[0].topk(5).values[-1] and got[7] == logits[7].topk(3).values[-1]
    assert got[[1, 4, 5, 6]].tolist() == [-torch.inf] * 4
    got = filter_threshold(logits, top_p=0.5, backend="fused")
    alone = filter_threshold(logits[[0, 4, 7]], top_p=0.5, backend="fused")
    assert got[[0, 4, 7]].equal(alone)


def test_rows_of_both_models_have_their_requests_thresholds(device):
    """One launch for target and draft rows of requests with 2, 0 and 1 draft tokens."""
    target, draft = rows_of("peaked", 300, torch.float32).repeat(3, 1), rows_of("flat", 300, torch.float32).repeat(2, 1)
    target, draft, top_k = target.to(device), draft[:3].to(device), torch.tensor([3, 9, 40], device=device)
    settings = KernelSettings(1.0, top_k, 1.0, 0.0)
    got = fused.filter_threshold_fused(target, settings, torch.tensor([2, 2, 3], device=device), draft)
    each = top_k[torch.tensor([0, 0, 0, 1, 2, 2, 0, 0, 2], device=device)]
    assert got.equal(filter_threshold(torch.cat([target, draft]), top_k=each, backend="torch"))


class ReadRows:
    """Counts the lanes of loads from a tensor, kernel by kernel, while the interpreter runs."""

    def __init__(self, monkeypatch, tensor: torch.Tensor) -> None:
        from triton.runtime import interpreter

        self.lanes: dict[str, int] = {}
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
        stock_load, stock_run = interpreter.InterpreterBuilder.create_masked_load, interpreter.InterpretedFunction.run
        names = []

        def load(builder, pointers, mask, *rest):
            inside = mask.data & (pointers.data >= start) & (pointers.data < end)
            self.lanes[names[-1]] = self.lanes.get(names[-1], 0) + int(inside.sum())
            return stock_load(builder, pointers, mask, *rest)

        def run(kernel, *arguments, **options):
            names.append(kernel.__name__)
            return stock_run(kernel, *arguments, **options)

        monkeypatch.setattr(interpreter.InterpreterBuilder, "create_masked_load", load)
        monkeypatch.setattr(interpreter.InterpretedFunction, "run", run)


@pytest.mark.parametrize(
    ("settings", "chunks"),
    # top-k: K chunks, and more where maxima tie. top-p 0.9 keeps 37 ids, in as many chunks.
    [({"top_k": 50}, 60), ({"top_p": 0.9}, 60), ({"top_k": 50, "top_p": 0.9}, 60)],
    ids=["top-k", "top-p", "both"],
)
def test_a_row_is_read_once_and_searched_in_few_chunks(settings, chunks, device, monkeypatch):
    if device != "cpu":
        pytest.skip("the interpreter counts")
    logits = rows_of("peaked", 151936, torch.bfloat16)[:1].contiguous()
    lowest = filter_threshold(logits, **settings)
    assert int((logits >= lowest).sum()) < 60
    read = ReadRows(monkeypatch, logits)
    filter_threshold(logits, backend="fused", **settings)
    assert read.lanes["filter_scan_kernel"] == 151936
    # At most 8 passes for top-k's 16 bits, one for the mass, 8 for top-p.
    assert 0 < read.lanes["filter_threshold_kernel"] <= 17 * chunks * fused.CHUNK
