"""Rows of `methods.py`: every training method from one start with one budget, and drafts of three depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.studies.bench_runs import DEPTHS, depth_row

MAX_NEW_TOKENS = 48
SHARED = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 4, "patience": 0, "heldout_prompts": 8}
BUDGET = SHARED | {"steps": 60, "eval_every": 60}
WARMUP = SHARED | {"method": "distillspec", "target_fraction": 1.0, "steps": 100, "eval_every": 50, "keep": "best"}
DEPTH_BUDGET = SHARED | {"method": "distillspec", "target_fraction": 1.0, "steps": 120, "eval_every": 40}


@dataclass(frozen=True)
class MethodRow:
    """A training method."""

    settings: dict[str, Any]
    """Flat settings of `TrainConfig` beyond the budget; the result file holds them too."""
    reads_target_answers: bool = False
    """Whether it begins with the target's answers, which then are the same stored ones for all."""


METHOD_ROWS = {
    "sft": MethodRow({"method": "sft"}),
    "seqkd": MethodRow({"method": "seqkd"}, reads_target_answers=True),
    "supervised-kd": MethodRow({"method": "supervised-kd"}),
    "target-fkl": MethodRow({"method": "distillspec", "target_fraction": 1.0}, reads_target_answers=True),
    "gkd": MethodRow({"method": "gkd"}),
    "on-policy-fkl": MethodRow({"method": "distillspec", "target_fraction": 0.0}),
    **{
        f"distillspec-{kind}": MethodRow(
            {"method": "distillspec", "target_fraction": 0.6, "divergence": kind}, reads_target_answers=True
        )
        for kind in ("fkl", "rkl", "jsd", "tvd", "lk_lambda", "lk_argmax")
    },
    **{f"skd-{top_k}": MethodRow({"method": "skd", "skd_top_k": top_k}) for top_k in (5, 25, 100)},
}
DEPTH_ROWS = {depth_row(layers): layers for layers in DEPTHS}
"""Row -> layers of the cut that it trains."""
