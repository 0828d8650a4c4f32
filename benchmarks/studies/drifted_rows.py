"""Rows of `drifted.py`: drafts of three depths for a fine-tuned target, and every method from one warmed-up draft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.studies.bench_runs import DEPTHS

MAX_NEW_TOKENS = 160
SHARED = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": 8, "patience": 0, "heldout_prompts": 8, "rule": "greedy"}
WARM, STOCK = "warm-4", "stock-4"
STOCK_SETTINGS = SHARED | {"method": "distillspec", "target_fraction": 1.0, "steps": 120, "eval_every": 40}


@dataclass(frozen=True)
class DriftedRow:
    """A training run."""

    settings: dict[str, Any]
    """Flat settings of `TrainConfig` beyond the shared ones."""
    cut_layers: int | None = None
    """Layers of the untrained cut that it starts from. None goes on from `warm-4` of the same seed."""
    stored_answers: bool = False
    """Reads the target's stored answers."""
    stored_labels: bool = False
    """Reads the target's stored labels of them."""

    def to_json(self) -> dict[str, Any]:
        """The row's settings in the result file, with folders relative to the study's."""
        answers = {"rollouts": "answers"} if self.stored_answers else {}
        labels = {"soft_labels": "labels"} if self.stored_labels else {}
        start = WARM if self.cut_layers is None else f"cut-{self.cut_layers}"
        return self.settings | answers | labels | {"start": start}


FORWARD_KL = {"method": "distillspec", "target_fraction": 1.0}
OWN_ANSWERS = {"method": "distillspec", "target_fraction": 0.6}
SHORT, MEDIUM = {"steps": 60, "eval_every": 60}, {"steps": 120, "eval_every": 40}
LONG = {"steps": 240, "eval_every": 40, "heldout_prompts": 16}
DRIFTED_ROWS = {
    **{f"fkl-{depth}": DriftedRow(FORWARD_KL | MEDIUM, cut_layers=depth, stored_labels=True) for depth in DEPTHS},
    # With the target itself, twice as long: the drafts that are benched in engines were trained by it.
    "long-4": DriftedRow(FORWARD_KL | LONG, cut_layers=4, stored_answers=True),
    WARM: DriftedRow(FORWARD_KL | SHORT, cut_layers=4, stored_labels=True),
    # From here on every row goes on from `warm-4`, all with 60 steps of 8 answers.
    "more-fkl": DriftedRow(FORWARD_KL | SHORT, stored_labels=True),
    "sft": DriftedRow({"method": "sft"} | SHORT),
    "seqkd": DriftedRow({"method": "seqkd"} | SHORT, stored_answers=True),
    "supervised-kd": DriftedRow({"method": "supervised-kd"} | SHORT),
    "gkd": DriftedRow({"method": "gkd"} | SHORT, stored_answers=True),
    "distillspec-jsd": DriftedRow(OWN_ANSWERS | {"divergence": "jsd"} | SHORT, stored_answers=True),
    "distillspec-rkl": DriftedRow(OWN_ANSWERS | {"divergence": "rkl"} | SHORT, stored_answers=True),
    "skd-25": DriftedRow({"method": "skd"} | SHORT),
}
