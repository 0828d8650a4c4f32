"""Decoding waits for a GPU once in each round and in each plain step: every other read of a tensor is seen here.

A mode refuses what makes the host wait for a GPU: reading values, shapes that depend on values, and copies from lists,
which are no page-locked memory. It runs on a CPU, where the same calls are made. The operations of
`specdistill_kernels` are let through, because on a GPU other code runs; `tests/ops/test_capture.py` proves that one.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from parallel_drafts import make_parallel
from tiny_models import make_model, perturbed
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import specdistill
from specdistill.decoding import ConfidenceLength, Sampling, SpeculativeDecoder, generate_plain, sampling, speculative
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.free_drafts import FreeDraft, FreeThenModel
from specdistill.decoding.lookup import VllmNgram

PACKAGE = str(Path(specdistill.__file__).parent)
READS = {"tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__contains__"}
COPIES = {"tensor", "as_tensor", "asarray"}
OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave")
PROMPTS = [[5, 6, 7, 5, 6, 7, 5, 6], [20, 21], [30, 31, 32, 33, 34, 30, 31], [9]]
GREEDY = Sampling(temperature=0.0)
NEW, DRAFTED = 30, 4


class Watch(TorchFunctionMode):
    """Counts reads and copies by the file of specdistill that made them, as `file:function`."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        indexed = name in ("__getitem__", "__setitem__") and _holds_list_or_mask(args[1])
        if name in READS or name in COPIES or indexed or (name == "where" and len(args) == 1):
            self.places[f"{_place()}:{name}"] += 1
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Counts operations of torch that wait for a GPU, however they were called."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if name.startswith(OPERATIONS):
            self._watch.places[f"{_place()}:{name}"] += 1
        return function(*args, **(kwargs or {}))


def _holds_list_or_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, list) or (isinstance(part, torch.Tensor) and part.dtype == torch.bool) for part in parts
    )


def _place() -> str:
    frame = sys._getframe(2)
    while not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
        assert frame is not None, "called by the package"
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}"


def apart(function):
    """An operation of the kernels, which the modes don't see."""

    def call(*args, **kwargs):
        with torch._C.DisableTorchFunction(), torch.utils._python_dispatch._disable_current_modes():
            return function(*args, **kwargs)

    return call


@pytest.fixture
def watched(monkeypatch):
    """Runs a call twice, and counts in the second one: the first proves the models and makes what is made once."""
    for module, name in ((sampling, "sample"), (sampling, "filter_threshold"), (speculative, "verify")):
        monkeypatch.setattr(module, name, apart(getattr(module, name)))

    def run(call):
        call()
        with Watch() as watch, Operations(watch):
            result = call()
        copies = watch.places.pop("transfers.py:to_device:tensor", 0)
        reads = watch.places.pop("transfers.py:read_back:tolist", 0)
        return result, reads, copies, dict(watch.places)

    return run


def drafts(target):
    model, ngram = perturbed(target, 0.02), FreeDraft(partial(VllmNgram, 1, 3), target.vocab_size)
    trimmed = perturbed(target, 0.02)
    trimmed.kept_ids = torch.arange(5, 65)
    return {
        "model": model,
        "trimmed": trimmed,
        "parallel": make_parallel(layers=2, seed=3),
        "free": ngram,
        "free, then a model": FreeThenModel(ngram, ModelDraft(model)),
    }


@pytest.mark.parametrize("kind", ["model", "trimmed", "parallel", "free", "free, then a model"])
@pytest.mark.parametrize("settings", [GREEDY, Sampling(temperature=0.8, top_k=20)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_round_reads_once(watched, kind, settings, rows):
    """Free drafts too: they search the text, which the host has from the last round."""
    target = make_model()
    decoder = SpeculativeDecoder(target, drafts(target)[kind], num_draft_tokens=DRAFTED, sampling=settings)
    written, reads, copies, elsewhere = watched(
        lambda: decoder.generate(PROMPTS[:rows], max_new_tokens=NEW, seeds=list(range(rows)))
    )
    rounds = max(len(answer.rounds) for answer in written)
    assert elsewhere == {}
    assert reads == rounds + 1, "one for the first token, behind the prompt"
    # Lengths, tokens and random counters go to the device, and where rows differ, the places of their tokens.
    assert copies <= 16 * (rounds + 1)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_plain_step_reads_once(watched, rows):
    target = make_model()
    written, reads, _, elsewhere = watched(
        lambda: generate_plain(target, PROMPTS[:rows], sampling=GREEDY, max_new_tokens=NEW, seeds=list(range(rows)))
    )
    assert (reads, elsewhere) == (max(len(answer.token_ids) for answer in written), {})


def test_a_draft_that_watches_its_confidence_reads_once_per_step(watched):
    """It stops in the middle of a round, so the host must know."""
    target = make_model()
    length = ConfidenceLength(DRAFTED, 0.01)
    decoder = SpeculativeDecoder(target, drafts(target)["model"], num_draft_tokens=length, sampling=Sampling())
    written, reads, _, elsewhere = watched(lambda: decoder.generate(PROMPTS[:1], max_new_tokens=NEW, seeds=[0]))
    assert reads == len(written[0].rounds) + 1
    (place,) = elsewhere
    assert place == "drafting.py:probabilities:tolist"
    # The last token of an answer is not drafted, and a token after which nothing follows is not judged.
    assert elsewhere[place] >= sum(entry.proposed for entry in written[0].rounds)


@pytest.mark.parametrize(
    "planted",
    [
        lambda hidden: hidden.sum().item(),
        lambda hidden: bool((hidden > 0).any()),
        lambda hidden: hidden.cpu(),
        lambda hidden: hidden.flatten()[:3].tolist(),
        lambda hidden: hidden[[0]],
        lambda hidden: hidden[hidden > 0],
        lambda hidden: torch.where(hidden > 0),
        lambda hidden: torch.tensor([1, 2], device=hidden.device),
    ],
    ids=["item", "bool", "cpu", "tolist", "list as index", "mask as index", "where", "tensor of a list"],
)
def test_planted_reads_are_seen(watched, monkeypatch, planted):
    from specdistill.decoding.cached_model import CachedModel

    target, real = make_model(), CachedModel.read_next

    def read_next(self, tokens):
        hidden = real(self, tokens)
        planted(hidden)
        return hidden

    monkeypatch.setattr(CachedModel, "read_next", read_next)
    _, _, _, elsewhere = watched(
        lambda: generate_plain(target, PROMPTS[:1], sampling=GREEDY, max_new_tokens=4, seeds=[0])
    )
    assert sum(elsewhere.values()) >= 3, elsewhere
