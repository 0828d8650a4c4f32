"""The bench report's `baselines`: what else could draft; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way of drafting besides the draft: the same prompts, in turn with the plain target, in the same run."""

    settings: dict[str, int | float]
    """Its settings, such as `max`, `min` and `num_draft_tokens`."""
    mean_acceptance_length: Estimate
    """Tokens per target call, calls without a proposal included."""
    proposed_share: float | None = None
    """Share of the target's calls in which it proposed anything; absent where the engine does not tell."""
    predicted_speedup: float | None = None
    """Predicted ratio of tokens per second to the plain target; absent where it was only measured."""
    speedup: Estimate | None = None
    """Measured ratio of tokens per second to the plain target, paired by prompt (or by batch)."""
