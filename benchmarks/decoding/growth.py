"""How costs grow on one CPU thread: over head size, context, batch and draft length, from SmolLM2's own weights.

    python benchmarks/decoding/growth.py           (about 4 minutes; nothing else may run meanwhile)

Each point is measured as `specdistill bench` does it: medians of single passes, target and draft in turn. A plain
target step at batch 1 and a context of 128 is the unit. The draft is 4 layers of the target; its head keeps N ids.
Writes benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.support.paths import target_file
from benchmarks.support.results import write_result
from benchmarks.support.special_drafts import with_first_ids
from specdistill.decoding.costs import Costs, measure_costs
from specdistill.models import LanguageModel, load_model
from specdistill.models.cut import cut_draft

LAYERS = [0, 10, 19, 29]
HEADS = (1024, 8192, 49152)
CONTEXTS = (32, 128, 512, 2048)
BATCHES = (1, 4, 16)
LENGTHS = 15


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    target = load_model(str(target_file()))
    whole_draft = cut_draft(target, LAYERS)
    trimmed_draft = with_first_ids(whole_draft, 8192)

    def measure(batch: int = 1, context: int = 128, length: int = 4, draft: LanguageModel = trimmed_draft) -> Costs:
        return measure_costs(
            target, draft, batch_size=batch, max_draft_tokens=length, context=context, repeats=7
        )  # fmt: skip

    base = measure(length=LENGTHS)
    unit = base.target_step_seconds
    heads = {str(size): measure(draft=with_first_ids(whole_draft, size)).draft_step_seconds / unit for size in HEADS}
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "target_step_seconds": unit,
        "draft_length": {str(width - 1): cost for width, cost in base.verify_cost.items() if width > 1},
        "head": heads,
        "context": {},
        "batch": {},
    }
    for context in CONTEXTS:
        costs = measure(context=context)
        result["context"][str(context)] = {
            "target_step": costs.target_step_seconds / unit,
            "draft_step": costs.draft_step_seconds / unit,
            "check_of_5": costs.verify_cost[5],
        }
    for batch in BATCHES:
        costs = measure(batch=batch)
        result["batch"][str(batch)] = {
            "target_step_per_row": costs.target_step_seconds / unit / batch,
            "draft_step_per_row": costs.draft_step_seconds / unit / batch,
            "check_of_5": costs.verify_cost[5],
            "perfect_draft_speedup_4": 5 / (4 * costs.cost_ratio + costs.verify_cost[5]),
        }
    write_result("growth.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
