"""How costs grow on one CPU thread: over head size, context, batch and draft length, from SmolLM2's own weights.

    python benchmarks/growth.py           (about 4 minutes; nothing else may run meanwhile)

Each point is measured as `specdistill bench` does it: medians of single passes, target and draft in turn. A plain
target step at batch 1 and a context of 128 is the unit. The draft is 4 layers of the target; its head keeps N ids.
Writes benchmarks/results/growth.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import torch
from smollm2 import RESULTS, target_file

from specdistill.decoding.costs import Costs, measure_costs
from specdistill.models import LanguageModel, load_model
from specdistill.models.cut import cut_draft

LAYERS = [0, 10, 19, 29]
HEADS = (1024, 8192, 49152)
CONTEXTS = (32, 128, 512, 2048)
BATCHES = (1, 4, 16)
LENGTHS = 15


def trimmed(draft: LanguageModel, size: int) -> LanguageModel:
    kept = None if size >= draft.vocab_size else torch.arange(size)
    return dataclasses.replace(draft, kept_ids=kept, _head=None)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    target = load_model(str(target_file()))
    draft = cut_draft(target, LAYERS)
    short = trimmed(draft, 8192)

    def costs(batch: int = 1, context: int = 128, length: int = 4, other: LanguageModel = short) -> Costs:
        return measure_costs(
            target, other, batch_size=batch, max_draft_tokens=length, context=context, repeats=7
        )  # fmt: skip

    base = costs(length=LENGTHS)
    unit = base.target_step_seconds
    found: dict = {
        "torch": torch.__version__,
        "target_step_seconds": unit,
        "draft_length": {str(width - 1): cost for width, cost in base.verify_cost.items() if width > 1},
        "head": {str(size): costs(other=trimmed(draft, size)).draft_step_seconds / unit for size in HEADS},
        "context": {},
        "batch": {},
    }
    for context in CONTEXTS:
        one = costs(context=context)
        found["context"][str(context)] = {
            "target_step": one.target_step_seconds / unit,
            "draft_step": one.draft_step_seconds / unit,
            "check_of_5": one.verify_cost[5],
        }
    for batch in BATCHES:
        one = costs(batch=batch)
        found["batch"][str(batch)] = {
            "target_step_per_row": one.target_step_seconds / unit / batch,
            "draft_step_per_row": one.draft_step_seconds / unit / batch,
            "check_of_5": one.verify_cost[5],
            "perfect_draft_speedup_4": 5 / (4 * one.cost_ratio + one.verify_cost[5]),
        }
    (RESULTS / "growth.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
