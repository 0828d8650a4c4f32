"""Other ways of drafting in words, and drafts that are no language model; the same for terminal and page."""

from __future__ import annotations

from typing import NamedTuple

from specdistill.evaluation.report import Report
from specdistill.report.wording import UNSCORED, estimate, number


class BaselineRow(NamedTuple):
    """One line of the table of baselines."""

    name: str
    settings: str
    tokens: str
    """Tokens per target call."""
    share: str
    """Share of the target's calls in which it proposed anything."""
    speedup: str
    """Over the plain target; the predicted one where it was not timed."""


def baseline_rows(report: Report) -> list[BaselineRow]:
    """The draft, then every other way of drafting; empty where nothing else was measured."""
    if not report.baselines:
        return []
    acceptance, length = report.acceptance, report.setup.num_draft_tokens
    name = report.draft.kind or "draft"
    own = estimate(acceptance.mean_acceptance_length), "", estimate(report.latency.speedup, 2)
    rows = [BaselineRow(f"{name} (this bench)", f"num_draft_tokens {length}", *own)]
    for name, entry in report.baselines.items():
        settings = ", ".join(f"{key} {value:g}" for key, value in entry.settings.items())
        share = "" if entry.proposed_share is None else number(entry.proposed_share, 3)
        speedup = "" if entry.predicted_speedup is None else f"predicted {number(entry.predicted_speedup)}"
        if entry.speedup is not None:
            speedup = estimate(entry.speedup, 2)
        rows.append(BaselineRow(name, settings, estimate(entry.mean_acceptance_length), share, speedup))
    return rows


def unscored_line(report: Report) -> str:
    """Why there is no alpha."""
    if report.draft.kind is None:
        return UNSCORED
    return f"alpha: unknown, for {report.draft.kind} is no draft model that could be scored; what follows was counted"


def draft_words(report: Report) -> str:
    """The draft in the first line of a report."""
    draft = report.draft
    if not draft.parameters:
        return f"draft {draft.name}"
    head = "" if draft.head_size is None else f", head of {draft.head_size:,} ids"
    kind = "" if draft.kind is None else f", {draft.kind}"
    return f"draft {draft.name} ({draft.parameters / 1e6:.1f}M{head}{kind})"
