"""Drafts without a model, in words, the same for terminal and page."""

from __future__ import annotations

from typing import NamedTuple

from specdistill.evaluation.recommendation import way_name
from specdistill.evaluation.report import Report
from specdistill.evaluation.report_setup import HEAD, EngineSetup
from specdistill.report.wording import estimate, number


class BaselineRow(NamedTuple):
    """One line of the table."""

    name: str
    meaning: str
    num_draft_tokens: str
    tokens_per_call: str
    proposed: str
    """Share of the rounds with a proposal."""
    predicted: str
    measured: str


def baseline_rows(report: Report) -> list[BaselineRow]:
    """The draft and everything free beside it; empty with --baselines none."""
    if not report.baselines:
        return []
    length, economics = report.setup.num_draft_tokens, report.economics
    drafted = report.acceptance.predicted_mean_acceptance_length.get(length)
    speed = economics.predicted_speedup.get(length)
    timed = estimate(report.latency.speedup, 2) if report.latency.is_timed else ""
    rows = [BaselineRow("draft", _own(report), str(length), number(drafted, 3), "", _known(speed), timed)]
    for name, baseline in report.baselines.items():
        share = baseline.proposed_share
        rows.append(
            BaselineRow(
                name,
                _meaning(report, name),
                str(baseline.settings.get("num_draft_tokens", "")),
                number(baseline.mean_acceptance_length.mean, 3),
                "" if share is None else f"{share:.2f}",
                _known(baseline.predicted_speedup),
                "" if baseline.speedup is None else estimate(baseline.speedup, 2),
            )
        )
    return rows


def _own(report: Report) -> str:
    """The draft beside the free ways; a way of an engine goes by its --method, which a head needs nowhere."""
    draft = report.draft
    if draft.is_model:
        return "the draft"
    # Without a --draft, the method's name stands in its place.
    return "the head" if draft.kind == HEAD and draft.name != HEAD else f"{draft.kind} (--method)"


def _meaning(report: Report, name: str) -> str:
    """Words for a way of drafting; in a real engine it is the engine's own."""
    if name == "ngram" and not isinstance(report.setup, EngineSetup):
        return "n-gram as vLLM does it"
    return way_name(name)


def _known(value: float | None) -> str:
    return "" if value is None else number(value)


def overlap_line(report: Report) -> str | None:
    """How much of the answers stands in the prompts; None with --baselines none."""
    overlap = report.overlap
    if overlap is None:
        return None
    return (
        f"of the answers' runs of 4 tokens {estimate(overlap.copied_4grams)} stand in the prompt; BLEU-4 of answer and "
        f"prompt {estimate(overlap.prompt_answer_bleu4)}"
    )


def draft_words(report: Report) -> str:
    """The draft in the first line of a report."""
    draft = report.draft
    if not draft.parameters:
        return f"draft {draft.name}"
    head = "" if draft.head_size is None else f", head of {draft.head_size:,} ids"
    kind = "" if draft.kind is None else f", {draft.kind}"
    return f"draft {draft.name} ({draft.parameters / 1e6:.1f}M{head}{kind})"
