"""Which draft length is timed, and whether decoding with the pair can be timed in this process at all."""

from __future__ import annotations

from specdistill.decoding import AutoLength, ConfidenceLength
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_length import DraftLength
from specdistill.decoding.proof import INSTEAD, prove
from specdistill.evaluation.config import AcceptanceSettings
from specdistill.evaluation.measured import Models


def steps_are_real(models: Models) -> bool:
    """Whether both models decode with a cache here: steps that read everything again cost what no server pays."""
    return all(prove(model).decodes for model in (models.target, models.draft))


def why_untimed(models: Models) -> str | None:
    """Why the pair can't decode speculatively in this process; None where it can."""
    for model in (models.target, models.draft):
        proof = prove(model)
        if not proof.rolls_back:
            return f"{model.name} can't drop tokens again here: {proof.reason}; {INSTEAD}"
    return None


def of_settings(settings: AcceptanceSettings, asked: int, chosen: int, costs: Costs) -> int | DraftLength:
    """The decoder's draft length: fixed, or decided before each round.

    Args:
        settings: Say which.
        asked: Length that the user set; 0 for none.
        chosen: Length where it is fixed.
        costs: Costs that an automatic length weighs.
    """
    if settings.draft_length == "auto":
        return AutoLength(costs, settings.max_draft_tokens)
    if settings.draft_length == "confidence":
        return ConfidenceLength(asked or settings.max_draft_tokens, settings.confidence)
    return chosen
