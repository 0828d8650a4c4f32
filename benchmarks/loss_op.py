"""The distillation loss from hidden states to gradients, against Liger's and TRL's chunked ones and the plain formula.

    python benchmarks/loss_op.py           (about 10 minutes; nothing else may run meanwhile)
    python benchmarks/loss_op.py --quick   (about three minutes: the small cases only)

Both heads are multiplied inside the operation, jsd at beta 0.5, forward and backward with respect to the draft's hidden
states and head, float32, width 576, one thread. Each contestant has its own process and waits for its turn; who begins
changes every round. Short cases are launched three times. Liger runs uncompiled and with its default chunk. Memory is
the peak of the resident set above what was held before. Writes benchmarks/results/loss_op.json.
"""

from __future__ import annotations

import argparse
import json
import statistics

import torch
from smollm2 import RESULTS
from turns import Contestant, Turns

from specdistill.evaluation.statistics import ratio

WIDTH = 576
CASES = ((64, 49152), (512, 49152), (4096, 49152), (64, 151936), (256, 151936))
QUICK = ((64, 49152), (512, 49152))
LAUNCHES = 3
CONTESTANTS = ("specdistill", "liger", "trl", "plain")


def loss_of(name: str, hidden, head, target_hidden, target_head) -> torch.Tensor:
    """The mean jsd over tokens, by the contestant's own public function."""
    tokens = len(hidden)
    if name == "specdistill":
        from specdistill_kernels import fused_divergence

        mean = torch.full((tokens,), 1 / tokens)
        settings = {"kind": "jsd", "beta": 0.5, "backend": "torch"}
        return fused_divergence(hidden, head, target_hidden, target_head, mean, **settings).loss
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

    return divergence(hidden @ head.T, target_hidden @ target_head.T, "jsd", beta=0.5).mean()


def work(name: str, tokens: int, vocab: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, WIDTH), (vocab, WIDTH), (tokens, WIDTH), (vocab, WIDTH)]
    inputs = [0.2 * torch.randn(shape, generator=generator) for shape in shapes]
    hidden, head = (each.requires_grad_() for each in inputs[:2])
    # Imports are no part of a turn.
    loss_of(name, *(each[:8].detach() for each in inputs))
    turns = Turns()
    while True:
        turns.begin()
        loss = loss_of(name, *inputs)
        gradients = torch.autograd.grad(loss, (hidden, head))
        turns.tokens = tokens
        del gradients
        turns.end()


def compare(tokens: int, vocab: int, rounds: int) -> dict:
    found: dict[str, list[dict]] = {name: [] for name in CONTESTANTS}
    # Where memory happens to lie decides much of a short case: processes differ more than rounds of one.
    for _ in range(LAUNCHES if tokens <= 512 and vocab == 49152 else 1):
        contestants = {
            name: Contestant(
                __file__, "--worker", name, "--case", str(tokens), str(vocab), TRL_EXPERIMENTAL_SILENCE="1"
            )
            for name in CONTESTANTS
        }
        for number in range(rounds + 1):
            turn = number % len(CONTESTANTS)
            for name in (*CONTESTANTS[turn:], *CONTESTANTS[:turn]):
                report = contestants[name].step()
                if number:
                    found[name].append(report)
        for contestant in contestants.values():
            contestant.end()

    def seconds(name: str) -> list[float]:
        return [each["seconds"] for each in found[name]]

    result = {
        "tokens": tokens,
        "vocab": vocab,
        "seconds": {name: statistics.median(seconds(name)) for name in found},
        "peak_mib": {name: max(each["above"] for each in rows) for name, rows in found.items()},
        "over_specdistill": {name: ratio(seconds(name), seconds("specdistill")).to_json() for name in CONTESTANTS[1:]},
    }
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.worker:
        return work(options.worker, *options.case)
    cases = [compare(*case, options.rounds) for case in (QUICK if options.quick else CASES)]
    result = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "width": WIDTH}
    result |= {"rounds": options.rounds, "cases": cases}
    name = "quick_loss_op.json" if options.quick else "loss_op.json"
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
