"""Parallel drafts and heads in words: their guesses depend on the round."""

from __future__ import annotations

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_setup import Setup
from specdistill.report.wording import number
from specdistill.report.wording_names import short_names


def depth_lines(report: Report) -> list[str]:
    """Alpha of each token of a round; empty for drafts whose guess does not depend on the round."""
    found, rule = report.acceptance.alpha_by_depth or {}, report.setup.predicting_rule
    if rule not in found:
        return []
    values = " ".join(f"{value:.3f}" for value in found[rule])
    mask = report.draft.mask_id
    way = "a head on the target's states" if mask is None else f"guessed in one pass behind mask token {mask}"
    lines = [f"{way}; alpha by depth ({rule}): {values}"]
    if report.acceptance.by_position_conditional:
        lines.append(
            "alpha by depth is a mean over every place where a round could start; the conditional acceptance by "
            "position is of real rounds, and only of those that kept all tokens before"
        )
    return lines


def break_even(report: Report) -> str:
    """The alpha that a draft needs; for a draft whose guesses depend on the round with the words what it holds for."""
    threshold = report.economics.break_even_alpha
    if threshold is None:
        return "none"
    if not report.acceptance.alpha_by_depth:
        return number(threshold, 3)
    return f"{number(threshold, 3)}, if every guess of a round had it (this draft's alpha falls with depth)"


def first_guess_line(report: Report) -> str | None:
    """Drafts whose alpha is that of a round's first guess; None where there are none."""
    names, drafts = short_names(report), []
    if report.acceptance.alpha_by_depth:
        drafts.append(names.draft)
    if report.compare is not None and report.compare.draft.kind is not None:
        drafts.append(str(names.compare))
    if not drafts:
        return None
    return f"alpha of {' and '.join(drafts)}: of a round's first guess only; later guesses are accepted less"


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
