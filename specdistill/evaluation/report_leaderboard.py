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
    kind: str | None = None
    """Its `kind`, as in `draft`; absent for a draft that takes a pass for each token."""
    alpha: Estimate
    """Its alpha under `setup.predicting_rule`; of a parallel draft or a head that of a round's first token only."""
    predicted_mean_acceptance_length: Estimate
    """Predicted tokens per target call at `setup.num_draft_tokens`."""
    cost_ratio: float | None = None
    """Time of its step in plain target steps, timed in turn with them; absent where steps can't be timed, and for a
    parallel draft, which takes one pass for all tokens of a round."""
    round_cost: float | None = None
    """Time of drafting `setup.num_draft_tokens` tokens, in one pass or a step each, and of checking them, in plain
    target steps: it compares drafts of all kinds. Absent where steps can't be timed."""
    best_num_draft_tokens: int | None = None
    """Its draft length with the highest predicted speed-up; absent likewise."""
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
