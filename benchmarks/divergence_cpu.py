"""Is the tiled divergence as fast as the plain unfused formula on a CPU, and how much memory does each need?

    python benchmarks/divergence_cpu.py            (about 3 minutes, one thread)

1024 tokens, vocabulary 49152, hidden sizes 576 and 576 (SmolLM2-135M), forward and backward with respect to the draft's
hidden states and head, float32, contestants in turn. Writes benchmarks/results/divergence_cpu.json.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time

import torch
from smollm2 import RESULTS

from specdistill_kernels import fused_divergence
from specdistill_kernels.fused_divergence.reference import divergence

TOKENS, VOCAB, WIDTH, REPEATS = 1024, 49152, 576, 3


def problem() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(TOKENS, WIDTH), (VOCAB, WIDTH), (TOKENS, WIDTH), (VOCAB, WIDTH)]
    found = [0.2 * torch.randn(shape, generator=generator) for shape in shapes]
    return [each.requires_grad_(index < 2) for index, each in enumerate(found)]


def tiled(kind: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    draft_hidden, draft_weight, target_hidden, target_weight = inputs
    return fused_divergence(
        draft_hidden,
        draft_weight,
        target_hidden,
        target_weight,
        torch.full((TOKENS,), 1 / TOKENS),
        kind=kind,
        backend="torch",
    ).loss


def unfused(kind: str, inputs: list[torch.Tensor]) -> torch.Tensor:
    draft_hidden, draft_weight, target_hidden, target_weight = inputs
    return divergence(draft_hidden @ draft_weight.T, target_hidden @ target_weight.T, kind).mean()


def run(call, kind: str, inputs: list[torch.Tensor]) -> tuple[float, list[torch.Tensor]]:
    start = time.perf_counter()
    gradients = list(torch.autograd.grad(call(kind, inputs), inputs[:2]))
    return time.perf_counter() - start, gradients


def main() -> None:
    torch.set_num_threads(1)
    inputs = problem()
    result: dict = {"tokens": TOKENS, "vocab": VOCAB, "torch": torch.__version__, "unfused_over_tiled": {}}
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Peak memory only rises, so the frugal one goes first.
    run(tiled, "fkl", inputs)
    after_tiled = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(unfused, "fkl", inputs)
    after_unfused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result["peak_mib"] = {"tiled": (after_tiled - base) / 1024, "unfused": (after_unfused - base) / 1024}
    for kind in ("fkl", "jsd", "lk_lambda"):
        ratios = []
        for _ in range(REPEATS):
            seconds, got = run(tiled, kind, inputs)
            other, wanted = run(unfused, kind, inputs)
            ratios.append(other / seconds)
        for mine, theirs in zip(got, wanted, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)
        result["unfused_over_tiled"][kind] = statistics.median(ratios)
        print(kind, [round(each, 3) for each in ratios], file=sys.stderr, flush=True)
    (RESULTS / "divergence_cpu.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
