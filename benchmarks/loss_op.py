"""The distillation loss from hidden states to gradients, against Liger's and TRL's chunked ones and the plain formula.

    python benchmarks/loss_op.py           (about 25 minutes; nothing else may run meanwhile)
    python benchmarks/loss_op.py --quick   (about four minutes: the small cases only, fewer launches)

Both heads are multiplied inside the operation, jsd at beta 0.5, forward and backward with respect to the draft's hidden
states and head, float32, width 576, one thread; two more divergences against the plain formula only. A launch is one
process of each contestant, one after the other; who begins changes. Liger runs uncompiled and with its default chunk.
Writes benchmarks/results/loss_op.json.

Time is that of the arithmetic: processes keep the memory that they took in two turns before. glibc left to itself gives
large blocks back after every use, and what it costs to fetch them anew depends on the machine and its state (here
between nothing and three times the arithmetic). Processes still differ more than turns of one do: each gives one
sample, and intervals are over launches. Memory is the peak of the resident set above what was held before, with glibc
left to itself; `seconds_glibc` is what that one turn took.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from smollm2 import RESULTS
from turns import Contestant, Turns

from specdistill.evaluation.statistics import ratio

WIDTH = 576
CASES = ((64, 49152, 5), (512, 49152, 5), (4096, 49152, 3), (64, 151936, 5), (256, 151936, 5))
QUICK = ((64, 49152, 4), (512, 49152, 4))
"""Tokens, ids and launches; one of 4096 tokens takes minutes."""
MORE_KINDS, MORE_CASE = ("fkl", "lk_lambda"), (512, 49152, 5)
WARMUP = 2
KEEP = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
CONTESTANTS = ("specdistill", "liger", "trl", "plain")


def loss_of(name: str, kind: str, hidden, head, target_hidden, target_head) -> torch.Tensor:
    """The mean divergence over tokens, by the contestant's own public function; Liger and TRL: jsd."""
    tokens = len(hidden)
    if name == "specdistill":
        from specdistill_kernels import fused_divergence

        mean = torch.full((tokens,), 1 / tokens)
        return fused_divergence(hidden, head, target_hidden, target_head, mean, kind=kind, backend="torch").loss
    if name == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
        return loss(hidden, head, target_hidden, target_head, torch.zeros(tokens, dtype=torch.int64))
    if name == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        found = ChunkedDivergenceFunction.apply(hidden, head, None, target_hidden, target_head, None, 0.5)
        assert found is not None
        return found[0].mean()
    from specdistill_kernels.fused_divergence.reference import divergence

    return divergence(hidden @ head.T, target_hidden @ target_head.T, kind).mean()


def work(name: str, kind: str, tokens: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, WIDTH), (vocab, WIDTH), (tokens, WIDTH), (vocab, WIDTH)]
    inputs = [0.2 * torch.randn(shape, generator=generator) for shape in shapes]
    hidden, head = (each.requires_grad_() for each in inputs[:2])
    # Imports are no part of a turn.
    loss_of(name, kind, *(each[:8].detach() for each in inputs))
    turns = Turns()
    while True:
        turns.begin()
        loss = loss_of(name, kind, *inputs)
        gradients = torch.autograd.grad(loss, (hidden, head))
        turns.tokens = tokens
        del gradients
        turns.end()


def turn(name: str, kind: str, tokens: int, vocab: int, warmup: int, **environment: str) -> dict:
    """Report of the turn after the first `warmup` ones of a new process."""
    environment["TRL_EXPERIMENTAL_SILENCE"] = "1"
    case = ("--kind", kind, "--case", str(tokens), str(vocab))
    contestant = Contestant(__file__, "--worker", name, *case, **environment)
    for _ in range(warmup):
        contestant.step()
    found = contestant.step()
    contestant.end()
    return found


def compare(
    tokens: int, vocab: int, launches: int, kind: str = "jsd", contestants: tuple[str, ...] = CONTESTANTS
) -> dict[str, Any]:
    given_back = {name: turn(name, kind, tokens, vocab, 0) for name in contestants}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(launches):
        first = number % len(contestants)
        for name in (*contestants[first:], *contestants[:first]):
            seconds[name].append(turn(name, kind, tokens, vocab, WARMUP, **KEEP)["seconds"])
    ours = seconds["specdistill"]
    result = {
        "tokens": tokens,
        "vocab": vocab,
        "seconds": {name: statistics.median(each) for name, each in seconds.items()},
        "over_specdistill": {name: ratio(seconds[name], ours).to_json() for name in contestants[1:]},
        "launch_seconds": seconds,
        "peak_mib": {name: given_back[name]["above"] for name in contestants},
        "seconds_glibc": {name: given_back[name]["seconds"] for name in contestants},
    }
    print(kind, json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return work(options.worker, options.kind, *options.case)
    cases = [compare(*case) for case in (QUICK if options.quick else CASES)]
    result = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "width": WIDTH}
    result |= {"cases": cases}
    if not options.quick:
        ours = ("specdistill", "plain")
        result["more_kinds"] = {kind: compare(*MORE_CASE, kind=kind, contestants=ours) for kind in MORE_KINDS}
    name = "quick_loss_op.json" if options.quick else "loss_op.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
