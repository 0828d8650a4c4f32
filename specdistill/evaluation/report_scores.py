"""The bench report's `score`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class AnswerScores:
    """How right finished answers are, by --scorer: means over prompts."""

    scorer: str
    """Value of --scorer."""
    prompts: int
    """Prompts that the draft answered alone."""
    target: Estimate
    """Score of the target alone; in a real engine, of the server without a draft."""
    draft: Estimate
    """Score of the draft alone, which writes by our decoder."""
    target_cut: int
    """Answers of the target that --max-new-tokens cut."""
    draft_cut: int
    """Answers of the draft alone that --max-new-tokens cut."""
    draft_minus_target: Estimate
    """Draft minus target, paired by prompt."""
    speculative_prompts: int
    """Prompts that speculative decoding answered in the timed run."""
    speculative: Estimate
    """Score of speculative decoding under `setup.rule`."""
    speculative_minus_target: Estimate
    """Speculative decoding minus the plain target in the timed run, paired by prompt: what a lossy rule costs. An exact
    rule at temperature 0 gives 0."""
    compared: Estimate | None = None
    """Score of the first draft of --compare alone."""
    draft_minus_compared: Estimate | None = None
    """Draft minus the first draft of --compare, paired by prompt."""
