"""Our kernels over logits against plain torch's and vLLM's: the contests of `kernel_speed.py` and of `make gpu`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch

import specdistill_kernels as ours
from benchmarks.ops.verification_paths import (
    NO_FILTERS,
    WITHOUT_DRAFT_LOGITS,
    Filters,
    Requests,
    other_path_on,
    ours_on,
    torch_on,
    vllm_on,
)
from benchmarks.support.device_timing import Contestants, Timing

VERIFICATIONS = (
    ("greedy", NO_FILTERS),
    ("argmax_draft", NO_FILTERS),
    ("sampled", NO_FILTERS),
    ("sampled", Filters(top_k=50, top_p=0.9)),
    ("sampled", Filters(top_p=0.9)),
    ("block", NO_FILTERS),
)
Rows = list[dict[str, Any]]
"""Rows of the result file."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of all contests."""

    vocab: int = 151936
    requests: tuple[tuple[int, int], ...] = ((1, 4), (8, 4), (64, 4), (256, 4))
    """Requests, and draft tokens of each."""
    rows: int = 2048
    """Rows of logits that are scored."""


def verification(timing: Timing, sizes: Sizes, vllm: Any) -> Rows:
    """Every rule at every batch size.

    Args:
        timing: How, and on which device.
        sizes: Sizes of the batches.
        vllm: Kernels by `vllm_kernels`, or None.
    """
    rows = []
    for batch, drafted in sizes.requests:
        for rule, filters in VERIFICATIONS:
            requests = Requests(batch, drafted, 0.0 if rule == "greedy" else 0.8, sizes.vocab, timing.device)
            contestants: Contestants = {"specdistill": ours_on(requests, rule, filters)}
            if rule not in WITHOUT_DRAFT_LOGITS:
                contestants["other path"] = other_path_on(requests, rule, filters)
            if rule != "block":
                contestants["torch"] = torch_on(requests, rule, filters)
            if vllm is not None:
                contestants["vllm"] = vllm_on(vllm, requests, rule, filters)
            row = {"batch": batch, "drafted": drafted, "rule": rule, "filters": filters.to_json()}
            row |= timing.compared(contestants)
            row["mean_accepted"] = round(float(contestants["specdistill"]()[0].float().mean()), 3)
            if "vllm" in row["milliseconds"]:
                row["mean_accepted_vllm"] = round(float(contestants["vllm"]()[1].float().mean()) - 1, 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def scoring(timing: Timing, sizes: Sizes) -> Rows:
    """The other operations over logits, against what one would write in torch."""
    torch.manual_seed(0)
    shape, device = (sizes.rows, sizes.vocab), timing.device
    target = (6 * torch.randn(shape, device=device)).bfloat16()
    draft = (target + 0.3 * torch.randn(shape, device=device)).bfloat16()
    ids, index = draft.argmax(-1), torch.arange(sizes.rows, device=device)

    def overlap() -> Any:
        p, q = target.float().softmax(-1), draft.float().softmax(-1)
        return torch.minimum(p, q).sum(-1), p.gather(1, q.argmax(-1, keepdim=True)), p.argmax(-1) == q.argmax(-1)

    def draw() -> Any:
        scores = target.float().softmax(-1)
        return scores.div_(torch.empty_like(scores).exponential_()).argmax(-1)

    cases: dict[str, Contestants] = {
        "expected_acceptance": {"specdistill": lambda: ours.expected_acceptance(target, draft), "torch": overlap},
        "sample": {"specdistill": lambda: ours.sample(target, seeds=index, positions=index), "torch": draw},
        "topk_membership, 25": {
            "specdistill": lambda: ours.topk_membership(target, ids, 25),
            "torch": lambda: (target.topk(25).indices == ids[:, None]).any(-1),
        },
        "filter_threshold, top-p 0.9": {
            "specdistill": lambda: ours.filter_threshold(target, top_p=0.9),
            "torch": lambda: target.float().softmax(-1).sort(-1, descending=True).values.cumsum(-1),
        },
    }
    rows = []
    for name, contestants in cases.items():
        row = {"operation": name, "rows": sizes.rows, **timing.compared(contestants, graph=False)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows
