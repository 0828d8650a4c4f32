"""Cost of a target pass over 5 tokens, in plain steps, by weights and threads. SmolLM2, CPU.

    python benchmarks/decoding/verify_cost.py         (about 2 minutes; nothing else may run meanwhile)

Every cell is measured three times, cells in turn; the middle one counts. Writes benchmarks/results/verify_cost.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from specdistill.decoding.costs import Costs, measure_costs
from specdistill.models import load_model
from specdistill.models.packed import pack

ROUNDS, CONTEXT = 3, 64


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    models = {"float32": load_model(str(target_file()))}
    for kind in ("float16", "int8"):
        models[kind] = load_model(str(target_file()))
        pack(models[kind], kind)
    measurements: dict[tuple[str, int], list[Costs]] = {}
    for _ in range(ROUNDS):
        for kind, model in models.items():
            for threads in (1, 2):
                torch.set_num_threads(threads)
                costs = measure_costs(model, model, batch_size=1, max_draft_tokens=4, context=CONTEXT, repeats=9)
                measurements.setdefault((kind, threads), []).append(costs)
    cells: list[dict[str, Any]] = []
    for (kind, threads), measured in measurements.items():
        middle = sorted(measured, key=lambda costs: costs.verify_cost[5])[ROUNDS // 2]
        cells.append(
            {
                "weights": kind,
                "threads": threads,
                "target_step_seconds": middle.target_step_seconds,
                "verify_cost": dict(middle.verify_cost),
                "verify_cost_of_5_in_turn": [costs.verify_cost[5] for costs in measured],
            }
        )
        print(cells[-1], flush=True)
    write_result("verify_cost.json", {"torch": torch.__version__, "context": CONTEXT, "cells": cells}, indent=2)


if __name__ == "__main__":
    main()
