"""What does a target pass over 5 tokens cost, in plain steps, by weights and threads? SmolLM2, CPU.

    python benchmarks/verify_cost.py            (about 2 minutes; nothing else may run meanwhile)

Every cell is measured three times, cells in turn; the middle one counts. Writes benchmarks/results/verify_cost.json.
"""

from __future__ import annotations

import json

import torch
from smollm2 import RESULTS, target_file

from specdistill.decoding.costs import measure_costs
from specdistill.models import load_model
from specdistill.models.packed import pack

TURNS, CONTEXT = 3, 64


def main() -> None:
    models = {"float32": load_model(str(target_file()))}
    for kind in ("float16", "int8"):
        models[kind] = load_model(str(target_file()))
        pack(models[kind], kind)
    cells: dict[tuple[str, int], list] = {}
    for _ in range(TURNS):
        for kind, model in models.items():
            for threads in (1, 2):
                torch.set_num_threads(threads)
                costs = measure_costs(model, model, batch_size=1, max_draft_tokens=4, context=CONTEXT, repeats=9)
                cells.setdefault((kind, threads), []).append(costs)
    result = {"torch": torch.__version__, "context": CONTEXT, "cells": []}
    for (kind, threads), measured in cells.items():
        middle = sorted(measured, key=lambda costs: costs.verify_cost[5])[TURNS // 2]
        result["cells"].append(
            {
                "weights": kind,
                "threads": threads,
                "target_step_seconds": middle.target_step_seconds,
                "verify_cost": dict(middle.verify_cost),
                "verify_cost_of_5_in_turn": [costs.verify_cost[5] for costs in measured],
            }
        )
        print(result["cells"][-1], flush=True)
    (RESULTS / "verify_cost.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
