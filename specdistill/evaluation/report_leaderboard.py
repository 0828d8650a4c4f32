"""The bench report's `leaderboard`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class LeaderboardRow:
    """One draft among several on the same answers of the target."""

    draft: str
    """Name of the draft, of --draft or --compare."""
    parameters: int
    """Its parameters."""
    alpha: Estimate
    """Its alpha under `setup.predicting_rule`."""
    predicted_mean_acceptance_length: Estimate
    """Predicted tokens per target call at `setup.num_draft_tokens`."""
    cost_ratio: float | None = None
    """Time of its step in plain target steps, timed in turn with them; absent where steps can't be timed."""
    best_num_draft_tokens: int | None = None
    """Its draft length with the highest predicted speed-up; absent without a `cost_ratio`."""
    predicted_speedup: float | None = None
    """Predicted speed-up at that length; absent likewise."""
    speedup: Estimate | None = None
    """Measured speed-up over the target alone; present for real engines, which serve every draft in turn."""
    mean_acceptance_length: Estimate | None = None
    """Tokens per target call by the engine's counters; present likewise."""
    alpha_minus_draft: Estimate | None = None
    """Its alpha minus that of --draft, paired by prompt; absent for --draft itself, like the next two."""
    tokens_minus_draft: Estimate | None = None
    """Its predicted tokens per target call minus those of --draft, paired by prompt."""
    speedup_minus_draft: Estimate | None = None
    """Its measured speed-up minus that of --draft, paired by prompt (by batch); present for real engines only."""
