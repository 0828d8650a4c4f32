"""Parallel drafts and heads in words: their guesses depend on the round."""

from __future__ import annotations

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_setup import Setup


def depth_lines(report: Report) -> list[str]:
    """Alpha of each token of a round; empty for drafts whose guess does not depend on the round."""
    found, rule = report.acceptance.alpha_by_depth or {}, report.setup.predicting_rule
    if rule not in found:
        return []
    values = " ".join(f"{value:.3f}" for value in found[rule])
    mask = report.draft.mask_id
    way = "a head on the target's states" if mask is None else f"guessed in one pass behind mask token {mask}"
    return [f"{way}; alpha by depth ({rule}): {values}"]


def one_by_one_lines(setup: Setup) -> list[str]:
    """How parallel drafts were used, where that was set."""
    if not setup.one_by_one:
        return []
    return ["parallel drafts: used as ordinary ones, which guess one token per pass (--one-by-one)"]


def drafting_cost(report: Report) -> str:
    """Costs of drafting in a sentence; empty for real engines."""
    economics, length = report.economics, report.setup.num_draft_tokens
    if economics.draft_pass_cost is not None:
        return f"Guessing {length} tokens in one pass costs {economics.draft_pass_cost[length]:.3f} target steps. "
    return "" if economics.cost_ratio is None else f"A draft step costs {economics.cost_ratio:.3f} target steps. "
