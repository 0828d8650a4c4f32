"""The bench report's `baselines` and `overlap`; see `report`."""

from __future__ import annotations

from dataclasses import dataclass

from specdistill.evaluation.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One way of drafting that needs no trained draft, or less of it."""

    settings: dict[str, int | float]
    """Its own settings, with `num_draft_tokens`, the most tokens that it copies."""
    mean_acceptance_length: Estimate
    """Tokens per target call: on the scored answers, as its drafter copies; by the engine's own counters in a real
    engine."""
    proposed_share: float | None = None
    """Share of the rounds in which it proposes anything."""
    predicted_speedup: float | None = None
    """From those tokens and the measured costs of single steps; absent where a cost is not known."""
    predicted_mean_acceptance_length: dict[int, float] | None = None
    """Draft length -> tokens per target call on the scored answers."""
    speedup: Estimate | None = None
    """Ratio of tokens per second to the plain target's, in turn in one run, paired by prompt (or by batch); absent
    where it was not timed."""
    over_draft: Estimate | None = None
    """Ratio of its tokens per second to those with the draft, paired likewise."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the answers stands in their prompts already: where that is much, copying wins."""

    prompt_answer_bleu4: Estimate
    """BLEU-4 of an answer's tokens against its prompt's, a mean over prompts."""
    copied_4grams: Estimate
    """Share of the answers' runs of 4 tokens that stand in the prompt."""
