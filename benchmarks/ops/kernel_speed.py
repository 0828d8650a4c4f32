"""How fast the kernels are on a GPU: against plain torch, vLLM's own kernels and Liger's, in one run.

    python benchmarks/ops/kernel_speed.py                             everything that is installed
    python benchmarks/ops/kernel_speed.py --vllm site-packages/vllm   also vLLM's, from its Python sources

Needs a GPU and specdistill_kernels (installed, or `PYTHONPATH=kernels`). `--vllm` needs no working vLLM, only its
Triton files: questions that they ask of the platform are answered here. Verification runs as a captured graph on random
logits whose draft is close to its target, 151936 ids in bfloat16. vLLM is timed over everything between the head and
the accepted tokens: copy to float32, temperature, filters, `rejection_sample`. Contestants take turns; each number is
the median of 5 rounds, ratios are of medians. Writes benchmarks/results/kernel_speed.json with the device's name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

import specdistill_kernels as ours
from benchmarks.ops.verification_paths import (
    DEVICE,
    NO_FILTERS,
    VOCAB,
    Filters,
    Requests,
    ours_on,
    torch_on,
    vllm_on,
)
from benchmarks.ops.vllm_sources import vllm_kernels
from benchmarks.support.paths import RESULTS
from benchmarks.support.results import write_result_to
from specdistill_kernels.fused_divergence.reference import divergence

ROUNDS = 5
SIZES = ((1, 4), (8, 4), (64, 4), (256, 4))
"""Requests, and draft tokens of each."""
VERIFICATIONS = (
    ("greedy", NO_FILTERS),
    ("argmax_draft", NO_FILTERS),
    ("sampled", NO_FILTERS),
    ("sampled", Filters(top_k=50, top_p=0.9)),
    ("block", NO_FILTERS),
)
Contestants = dict[str, Callable[[], Any]]
Rows = list[dict[str, Any]]
"""Rows of the result file."""


def milliseconds(contestants: Contestants, graph: bool = True) -> dict[str, float]:
    """Median time of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            timed: Any = triton.testing.do_bench_cudagraph if graph else triton.testing.do_bench
            # Graphs want a stream of their own; both return the median.
            with torch.cuda.stream(torch.cuda.Stream()):
                median: Any = timed(call, rep=40, return_mode="median")
                times[name].append(median)
    return {name: statistics.median(medians) for name, medians in times.items()}


def extra_mebibytes(call: Callable[[], Any]) -> float:
    """Memory that a call needs above the memory that was in use before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compared(contestants: Contestants, graph: bool = True) -> dict[str, Any]:
    """Times and memory of all contestants, as rows of the result file hold them."""
    memory = {name: round(extra_mebibytes(call), 2) for name, call in contestants.items()}
    times = milliseconds(contestants, graph)
    our_time = times["specdistill"]
    return {
        "milliseconds": {name: round(time, 5) for name, time in times.items()},
        "times_ours": {name: round(time / our_time, 2) for name, time in times.items() if name != "specdistill"},
        "extra_mebibytes": memory,
    }


def verification(vllm: Any) -> Rows:
    """Every rule at every batch size.

    Args:
        vllm: Kernels by `vllm_kernels`, or None.
    """
    rows = []
    for batch, drafted in SIZES:
        for rule, filters in VERIFICATIONS:
            requests = Requests(batch, drafted, 0.0 if rule == "greedy" else 0.8)
            contestants: Contestants = {"specdistill": ours_on(requests, rule, filters)}
            if rule != "block":
                contestants["torch"] = torch_on(requests, rule, filters)
            if vllm is not None:
                contestants["vllm"] = vllm_on(vllm, requests, rule, filters)
            row = {"batch": batch, "drafted": drafted, "rule": rule, "filters": filters.to_json()}
            row |= compared(contestants)
            row["mean_accepted"] = round(float(contestants["specdistill"]()[0].float().mean()), 3)
            if vllm is not None:
                row["mean_accepted_vllm"] = round(float(contestants["vllm"]()[1].float().mean()) - 1, 3)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def scoring(num_rows: int = 2048) -> Rows:
    """The other operations over logits, against what one would write in torch."""
    torch.manual_seed(0)
    target = (6 * torch.randn(num_rows, VOCAB, device=DEVICE)).bfloat16()
    draft = (target + 0.3 * torch.randn(num_rows, VOCAB, device=DEVICE)).bfloat16()
    ids, index = draft.argmax(-1), torch.arange(num_rows, device=DEVICE)

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
        row = {"operation": name, "rows": num_rows, **compared(contestants, graph=False)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


class LossInputs:
    """Hidden states and heads of both models, and the loss with its gradients by every contestant."""

    def __init__(self, tokens: int, draft_width: int, target_width: int) -> None:
        torch.manual_seed(0)
        self.hidden, self.head = self._leaf(tokens, draft_width, 1.0), self._leaf(VOCAB, draft_width, draft_width**-0.5)
        self.target = self._leaf(tokens, target_width, 1.0).detach()
        self.target_head = self._leaf(VOCAB, target_width, target_width**-0.5).detach()
        self.weights = torch.full((tokens,), 1 / tokens, device=DEVICE)

    def _leaf(self, rows: int, width: int, scale: float) -> Tensor:
        return (scale * torch.randn(rows, width, device=DEVICE)).bfloat16().requires_grad_()

    def _gradients(self, loss: Tensor) -> Any:
        return torch.autograd.grad(loss, (self.hidden, self.head))

    def ours(self, kind: str) -> Any:
        states = (self.hidden, self.head, self.target, self.target_head)
        return self._gradients(ours.fused_divergence(*states, self.weights, kind=kind).loss)

    def torch(self, kind: str) -> Any:
        draft, target = self.hidden @ self.head.T, self.target @ self.target_head.T
        return self._gradients(divergence(draft.float(), target.float(), kind).mean())

    def liger(self, module: Any) -> Any:
        return self._gradients(module(self.hidden, self.head, self.target, self.target_head, None))


def divergences(tokens: int = 4096, draft_width: int = 1024, target_width: int = 2048) -> Rows:
    """Forward and backward of the training loss: ours, the plain formula, and Liger's where it has the divergence."""
    inputs = LossInputs(tokens, draft_width, target_width)
    try:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD
    except ImportError:
        LigerFusedLinearJSD = None
    rows = []
    for kind, beta in (("fkl", 0.0), ("rkl", 1.0), ("jsd", 0.5), ("lk_lambda", None)):
        contestants: Contestants = {
            "specdistill": lambda kind=kind: inputs.ours(kind),
            "torch": lambda kind=kind: inputs.torch(kind),
        }
        if LigerFusedLinearJSD is not None and beta is not None:
            module = LigerFusedLinearJSD(jsd_beta=beta)
            contestants["liger"] = lambda module=module: inputs.liger(module)
        sizes = {"tokens": tokens, "widths": [draft_width, target_width]}
        row = {"kind": kind, **sizes, **compared(contestants, graph=False)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    return rows


def copied_terabytes_per_second() -> float:
    """The card's own ceiling: a large copy, bytes read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    milliseconds: Any = triton.testing.do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() / milliseconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="folder of vLLM's package, for its Triton files")
    parser.add_argument("--vllm-version", default="", help="written next to its numbers")
    parser.add_argument("--output", type=Path, default=RESULTS / "kernel_speed.json")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU")
    processors = torch.cuda.get_device_properties(0).multi_processor_count
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vllm": options.vllm_version,
        "vocab": VOCAB,
        "copy_terabytes_per_second": round(copied_terabytes_per_second(), 3),
    }
    vllm = vllm_kernels(options.vllm, processors) if options.vllm else None
    parts: dict[str, Callable[[], Rows]] = {
        "verify": lambda: verification(vllm),
        "scoring": scoring,
        "fused_divergence": divergences,
    }
    for name, measure in parts.items():
        result[name] = measure()
        torch.cuda.empty_cache()
        # Written after every part, in case a later one fails.
        write_result_to(options.output, result)


if __name__ == "__main__":
    main()
