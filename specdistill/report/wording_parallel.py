"""A parallel draft in words."""

from __future__ import annotations

from specdistill.evaluation.report import Report


def depth_lines(report: Report) -> list[str]:
    """Alpha of each token that a parallel draft guesses in one pass; empty for other drafts."""
    found, rule = report.acceptance.alpha_by_depth or {}, report.setup.predicting_rule
    if rule not in found:
        return []
    values = " ".join(f"{value:.3f}" for value in found[rule])
    return [f"guessed in one pass behind mask token {report.draft.mask_id}; alpha by depth ({rule}): {values}"]


def drafting_cost(report: Report) -> str:
    """Costs of drafting in a sentence; empty for real engines."""
    economics, length = report.economics, report.setup.num_draft_tokens
    if economics.draft_pass_cost is not None:
        return f"Guessing {length} tokens in one pass costs {economics.draft_pass_cost[length]:.3f} target steps. "
    return "" if economics.cost_ratio is None else f"A draft step costs {economics.cost_ratio:.3f} target steps. "
