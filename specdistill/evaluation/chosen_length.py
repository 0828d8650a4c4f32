"""How many tokens the timed run drafts."""

from __future__ import annotations

from specdistill.decoding import AutoLength, ConfidenceLength
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_length import DraftLength
from specdistill.evaluation import economics
from specdistill.evaluation.config import AcceptanceSettings


def best_length(predicted: dict[int, float], costs: Costs) -> int:
    """The draft length with the highest predicted speed-up."""
    return max(
        predicted,
        key=lambda length: economics.speedup(
            predicted[length], length, costs.cost_ratio, costs.verify_cost[length + 1]
        ),
    )


def draft_length_of(settings: AcceptanceSettings, asked: int, chosen: int, costs: Costs) -> int | DraftLength:
    """Decides between the chosen number and a rule that varies it while it decodes."""
    if settings.draft_length == "auto":
        return AutoLength(costs, settings.max_draft_tokens)
    if settings.draft_length == "confidence":
        return ConfidenceLength(asked or settings.max_draft_tokens, settings.confidence)
    return chosen
