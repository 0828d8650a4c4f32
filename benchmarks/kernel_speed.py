"""How fast the kernels are on a GPU: against plain torch, vLLM's own kernels and Liger's, in one run.

    python benchmarks/kernel_speed.py                                  everything that is installed
    python benchmarks/kernel_speed.py --vllm site-packages/vllm        also vLLM's, from its Python sources

Needs a GPU and specdistill_kernels (installed, or `PYTHONPATH=kernels`); `--vllm` needs no working vLLM, only its
Triton files: what they ask of the platform is answered here.
Verification runs as a captured graph on random logits whose draft is close to its target, 151936 ids in bfloat16.
What vLLM does between the head and the accepted tokens is timed whole: copy to float32, temperature, filters,
`rejection_sample`. Contestants take turns; each number is the median of 5 rounds, ratios are of medians. Writes
benchmarks/results/kernel_speed.json with the device's name.
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
from vllm_sources import vllm_kernels

import specdistill_kernels as ours
from specdistill_kernels.fused_divergence.reference import divergence

RESULT = Path(__file__).parents[1] / "benchmarks/results/kernel_speed.json"
VOCAB, ROUNDS, DEVICE = 151936, 5, "cuda"
FILTERS = {"top_k": 50, "top_p": 0.9}
Contestants = dict[str, Callable[[], Any]]


def milliseconds(contestants: Contestants, graph: bool = True) -> dict[str, float]:
    """Median time of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, call in contestants.items():
            timed: Any = triton.testing.do_bench_cudagraph if graph else triton.testing.do_bench
            # Graphs want a stream of their own; both return the median.
            with torch.cuda.stream(torch.cuda.Stream()):
                found: Any = timed(call, rep=40, return_mode="median")
                times[name].append(found)
    return {name: statistics.median(found) for name, found in times.items()}


def extra_mebibytes(call: Callable[[], Any]) -> float:
    """Memory that a call needs above what lay there before."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def compared(contestants: Contestants, graph: bool = True) -> dict[str, Any]:
    memory = {name: round(extra_mebibytes(call), 2) for name, call in contestants.items()}
    found = milliseconds(contestants, graph)
    mine = found["specdistill"]
    return {
        "milliseconds": {name: round(value, 5) for name, value in found.items()},
        "times_ours": {name: round(value / mine, 2) for name, value in found.items() if name != "specdistill"},
        "extra_mebibytes": memory,
    }


class Requests:
    """A batch in which each request drafted the same number of tokens."""

    def __init__(self, batch: int, drafted: int, temperature: float):
        torch.manual_seed(0)
        self.batch, self.drafted = batch, drafted
        # Spread so that the likeliest id has a tenth to a third of the mass, as language models have.
        target = 6 * torch.randn(batch, drafted + 1, VOCAB, device=DEVICE)
        draft = target[:, :-1] + 0.3 * torch.randn(batch, drafted, VOCAB, device=DEVICE)
        self.target, self.draft = target.flatten(0, 1).bfloat16(), draft.bfloat16()
        self.temperature = torch.full((batch,), temperature, device=DEVICE)
        warm = draft / max(temperature, 1e-3)
        noise = -torch.empty_like(warm).exponential_().log()
        self.argmax, self.drawn = draft.argmax(-1), (warm + noise).argmax(-1)
        self.cu = torch.arange(1, batch + 1, device=DEVICE) * drafted
        self.seeds, self.positions = torch.arange(batch, device=DEVICE), torch.full((batch,), 7, device=DEVICE)


def ours_on(x: Requests, rule: str, filters: dict[str, Any]) -> Callable[[], Any]:
    ids = x.argmax if rule in ("greedy", "argmax_draft") else x.drawn
    draft = None if rule in ("greedy", "argmax_draft") else x.draft.flatten(0, 1)
    given: dict[str, Any] = {name: torch.full((x.batch,), value, device=DEVICE) for name, value in filters.items()}
    return lambda: ours.verify(
        x.target, ids.flatten(), x.cu, draft, rule=rule, seeds=x.seeds, positions=x.positions,
        temperature=x.temperature, backend="fused", **given,
    )  # fmt: skip


def vllm_on(vllm: Any, x: Requests, rule: str, filters: dict[str, Any]) -> Callable[[], Any]:
    """Its second model runner's path; of draft tokens it wants one in front of each request's first row, unread."""
    ids = x.argmax if rule in ("greedy", "argmax_draft") else x.drawn
    rows, width = x.batch * (x.drafted + 1), x.drafted + 1
    drafted = torch.cat([ids[:, :1], ids], 1).flatten().int()
    ends = torch.arange(x.batch + 1, device=DEVICE, dtype=torch.int32) * width
    request = torch.arange(x.batch, device=DEVICE, dtype=torch.int32)
    requests = request.repeat_interleave(width)
    local = torch.arange(width, device=DEVICE, dtype=torch.int32).repeat(x.batch)
    positions = torch.arange(rows, device=DEVICE)
    draft = None if rule in ("greedy", "argmax_draft") else x.draft
    top_k = torch.full((rows,), filters["top_k"], device=DEVICE, dtype=torch.int32) if "top_k" in filters else None
    top_p = torch.full((rows,), filters["top_p"], device=DEVICE) if "top_p" in filters else None

    def call() -> Any:
        logits = torch.empty_like(x.target, dtype=torch.float32).copy_(x.target)
        if rule != "greedy":
            vllm.apply_temperature(logits, requests, x.temperature)
        if filters:
            logits = vllm.apply_top_k_top_p(logits, top_k, top_p)
        return vllm.reject(
            logits, draft, drafted, ends, positions, request, requests, local, x.temperature, x.seeds, x.drafted,
            use_block_verification=rule == "block",
        )  # fmt: skip

    return call


def torch_on(x: Requests, rule: str, filters: dict[str, Any]) -> Callable[[], Any]:
    """The textbook's: both laws in float32, coins, the residual, a draw by an exponential race."""
    ids = x.argmax if rule in ("greedy", "argmax_draft") else x.drawn
    request = torch.arange(x.batch, device=DEVICE)

    def law(logits: Tensor) -> Tensor:
        scores = logits.float() / x.temperature[:, None, None]
        if filters:
            ordered, order = scores.sort(-1, descending=True)
            ordered[..., filters["top_k"] :] = -torch.inf
            mass = ordered.softmax(-1)
            ordered = ordered.masked_fill(mass.cumsum(-1) - mass > filters["top_p"], -torch.inf)
            scores = torch.empty_like(scores).scatter_(-1, order, ordered)
        return scores.softmax(-1)

    def call() -> Any:
        target = x.target.unflatten(0, (x.batch, -1))
        if rule == "greedy":
            own = target.argmax(-1)
            kept = (own[:, :-1] == ids).long().cumprod(1).sum(1)
            return kept, own[request, kept]
        p = law(target)
        chance = p[:, :-1].gather(2, ids[..., None])[..., 0]
        if rule == "argmax_draft":
            q = torch.zeros_like(p).scatter_(2, torch.nn.functional.pad(ids, (0, 1))[..., None], 1.0)
            q[:, -1] = 0
        else:
            q = torch.nn.functional.pad(law(x.draft), (0, 0, 0, 1))
            chance = chance / q[:, :-1].gather(2, ids[..., None])[..., 0]
        kept = (torch.rand(chance.shape, device=DEVICE) < chance).long().cumprod(1).sum(1)
        residual = (p[request, kept] - q[request, kept]).clamp_(min=0)
        return kept, residual.div_(torch.empty_like(residual).exponential_()).argmax(-1)

    return call


def verification(vllm: Any) -> list[dict[str, Any]]:
    found = []
    for batch, drafted in ((1, 4), (8, 4), (64, 4), (256, 4)):
        for rule, filters in (
            ("greedy", {}),
            ("argmax_draft", {}),
            ("sampled", {}),
            ("sampled", FILTERS),
            ("block", {}),
        ):
            x = Requests(batch, drafted, 0.0 if rule == "greedy" else 0.8)
            contestants: Contestants = {"specdistill": ours_on(x, rule, filters)}
            if rule != "block":
                contestants["torch"] = torch_on(x, rule, filters)
            if vllm is not None:
                contestants["vllm"] = vllm_on(vllm, x, rule, filters)
            row = {"batch": batch, "drafted": drafted, "rule": rule, "filters": filters, **compared(contestants)}
            row["mean_accepted"] = round(float(contestants["specdistill"]()[0].float().mean()), 3)
            if vllm is not None:
                row["mean_accepted_vllm"] = round(float(contestants["vllm"]()[1].float().mean()) - 1, 3)
            found.append(row)
            print(json.dumps(row), flush=True)
    return found


def scoring(rows: int = 2048) -> list[dict[str, Any]]:
    """The other operations over logits, against what one would write in torch."""
    torch.manual_seed(0)
    target = (6 * torch.randn(rows, VOCAB, device=DEVICE)).bfloat16()
    draft = (target + 0.3 * torch.randn(rows, VOCAB, device=DEVICE)).bfloat16()
    ids, index = draft.argmax(-1), torch.arange(rows, device=DEVICE)

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
    found = []
    for name, contestants in cases.items():
        row = {"operation": name, "rows": rows, **compared(contestants, graph=False)}
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def divergences(tokens: int = 4096, draft_width: int = 1024, target_width: int = 2048) -> list[dict[str, Any]]:
    """Forward and backward of the training loss: ours, the plain formula, and Liger's where it has the divergence."""
    torch.manual_seed(0)

    def leaf(*shape: int, scale: float) -> Tensor:
        return (scale * torch.randn(*shape, device=DEVICE)).bfloat16().requires_grad_()

    hidden, head = leaf(tokens, draft_width, scale=1.0), leaf(VOCAB, draft_width, scale=draft_width**-0.5)
    target, target_head = (
        leaf(tokens, target_width, scale=1.0).detach(),
        leaf(VOCAB, target_width, scale=target_width**-0.5).detach(),
    )
    weights = torch.full((tokens,), 1 / tokens, device=DEVICE)

    def ours_of(kind: str) -> Callable[[], Any]:
        def call() -> Any:
            loss = ours.fused_divergence(hidden, head, target, target_head, weights, kind=kind).loss
            return torch.autograd.grad(loss, (hidden, head))

        return call

    def torch_of(kind: str) -> Callable[[], Any]:
        def call() -> Any:
            loss = divergence((hidden @ head.T).float(), (target @ target_head.T).float(), kind).mean()
            return torch.autograd.grad(loss, (hidden, head))

        return call

    try:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD
    except ImportError:
        LigerFusedLinearJSD = None
    found = []
    for kind, beta in (("fkl", 0.0), ("rkl", 1.0), ("jsd", 0.5), ("lk_lambda", None)):
        contestants: Contestants = {"specdistill": ours_of(kind), "torch": torch_of(kind)}
        if LigerFusedLinearJSD is not None and beta is not None:
            liger = LigerFusedLinearJSD(jsd_beta=beta)
            contestants["liger"] = lambda liger=liger: torch.autograd.grad(
                liger(hidden, head, target, target_head, None), (hidden, head)
            )
        row = {
            "kind": kind,
            "tokens": tokens,
            "widths": [draft_width, target_width],
            **compared(contestants, graph=False),
        }
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def copied_terabytes_per_second() -> float:
    """The card's own ceiling: a large copy, bytes read and written."""
    source = torch.empty(2**30, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    taken: Any = triton.testing.do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * source.numel() / taken / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm", type=Path, help="folder of vLLM's package, for its Triton files")
    parser.add_argument("--vllm-version", default="", help="written beside its numbers")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU")
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "vllm": options.vllm_version,
        "vocab": VOCAB,
        "copy_terabytes_per_second": round(copied_terabytes_per_second(), 3),
    }
    for name, measure in (
        (
            "verify",
            lambda: verification(
                vllm_kernels(options.vllm, torch.cuda.get_device_properties(0).multi_processor_count)
                if options.vllm
                else None
            ),
        ),
        ("scoring", scoring),
        ("fused_divergence", divergences),
    ):
        result[name] = measure()
        torch.cuda.empty_cache()
        # What is measured is kept, should a later part fail.
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
