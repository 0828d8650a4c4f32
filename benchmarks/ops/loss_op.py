"""The distillation loss from hidden states to gradients, against Liger's and TRL's chunked ones and the plain formula.

    python benchmarks/ops/loss_op.py           (about 25 minutes; nothing else may run meanwhile)
    python benchmarks/ops/loss_op.py --quick   (about four minutes: the small cases only, fewer launches)

Both heads are multiplied inside the operation: jsd at beta 0.5, forward and backward with respect to the draft's hidden
states and head, float32, width 576, one thread. Two more divergences run against the plain formula only. A launch is
one process of each contestant, one after the other; each launch begins with another one. Liger runs uncompiled and with
its default chunk. Writes benchmarks/results/loss_op.json.

The time is that of the arithmetic: processes keep the memory that they took in two turns before. Left to itself, glibc
gives large blocks back after every use, and fetching them again costs an amount that depends on the machine and its
state (here between nothing and three times the arithmetic). Processes still differ more than the turns of one process
do, so each process gives one sample and intervals are over launches. Memory is the peak of the resident set above what
was held before, with glibc left to itself; `seconds_glibc` is the time of that one turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.interleaved import Contestant, Interleaved, Turn, rotated
from benchmarks.support.paths import quick_result
from benchmarks.support.results import write_result
from specdistill.evaluation.statistics import ratio

WIDTH = 576
WARMUP = 2
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
CONTESTANTS = ("specdistill", "liger", "trl", "plain")


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison, and how often its processes are launched."""

    tokens: int
    vocab: int
    launches: int


CASES = (Case(64, 49152, 5), Case(512, 49152, 5), Case(4096, 49152, 3), Case(64, 151936, 5), Case(256, 151936, 5))
QUICK_CASES = (Case(64, 49152, 4), Case(512, 49152, 4))
"""A case of 4096 tokens takes minutes."""
MORE_KINDS, MORE_CASE = ("fkl", "lk_lambda"), Case(512, 49152, 5)


def loss_of(contestant: str, kind: str, hidden, head, target_hidden, target_head) -> torch.Tensor:
    """Mean divergence over tokens, by the contestant's own public function. Liger and TRL know jsd only here."""
    tokens = len(hidden)
    if contestant == "specdistill":
        from specdistill_kernels import fused_divergence

        mean = torch.full((tokens,), 1 / tokens)
        return fused_divergence(hidden, head, target_hidden, target_head, mean, kind=kind, backend="torch").loss
    if contestant == "liger":
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False)
        return loss(hidden, head, target_hidden, target_head, torch.zeros(tokens, dtype=torch.int64))
    if contestant == "trl":
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        output = ChunkedDivergenceFunction.apply(hidden, head, None, target_hidden, target_head, None, 0.5)
        assert output is not None
        return output[0].mean()
    from specdistill_kernels.fused_divergence.reference import divergence

    return divergence(hidden @ head.T, target_hidden @ target_head.T, kind).mean()


def run_contestant(contestant: str, kind: str, tokens: int, vocab: int) -> None:
    """Takes turns for ever; the comparing script ends the process."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, WIDTH), (vocab, WIDTH), (tokens, WIDTH), (vocab, WIDTH)]
    inputs = [0.2 * torch.randn(shape, generator=generator) for shape in shapes]
    hidden, head = (tensor.requires_grad_() for tensor in inputs[:2])
    # Imports are no part of a turn.
    loss_of(contestant, kind, *(tensor[:8].detach() for tensor in inputs))
    turns = Interleaved()
    while True:
        turns.begin()
        loss = loss_of(contestant, kind, *inputs)
        gradients = torch.autograd.grad(loss, (hidden, head))
        turns.tokens = tokens
        del gradients
        turns.end()


def turn_after(warmup: int, contestant: str, kind: str, case: Case, **environment: str) -> Turn:
    """The turn after the first `warmup` ones of a new process."""
    environment["TRL_EXPERIMENTAL_SILENCE"] = "1"
    sizes = ("--kind", kind, "--case", str(case.tokens), str(case.vocab))
    process = Contestant(__file__, "--worker", contestant, *sizes, **environment)
    for _ in range(warmup):
        process.turn()
    turn = process.turn()
    process.stop()
    return turn


def compare(case: Case, kind: str = "jsd", contestants: tuple[str, ...] = CONTESTANTS) -> dict[str, Any]:
    """Times and memory of one case, as the result file holds them."""
    with_glibc = {name: turn_after(0, name, kind, case) for name in contestants}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for launch in range(case.launches):
        for name in rotated(contestants, launch):
            seconds[name].append(turn_after(WARMUP, name, kind, case, **KEEP_MEMORY).seconds)
    ours = seconds["specdistill"]
    result = {
        "tokens": case.tokens,
        "vocab": case.vocab,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "over_specdistill": {name: ratio(seconds[name], ours).to_json() for name in contestants[1:]},
        "launch_seconds": seconds,
        "peak_mib": {name: turn.above_mib for name, turn in with_glibc.items()},
        "seconds_glibc": {name: turn.seconds for name, turn in with_glibc.items()},
    }
    print(kind, json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small cases and fewer launches")
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return run_contestant(options.worker, options.kind, *options.case)
    result: dict[str, Any] = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
    result |= {"width": WIDTH, "cases": [compare(case) for case in (QUICK_CASES if options.quick else CASES)]}
    if not options.quick:
        pair = ("specdistill", "plain")
        result["more_kinds"] = {kind: compare(MORE_CASE, kind, pair) for kind in MORE_KINDS}
    write_result(quick_result("loss_op.json") if options.quick else "loss_op.json", result)


if __name__ == "__main__":
    main()
