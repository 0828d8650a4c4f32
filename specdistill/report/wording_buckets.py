"""Where acceptance comes from, in words; the same for terminal and HTML page."""

from __future__ import annotations

from typing import NamedTuple

from specdistill.evaluation.report import Report
from specdistill.evaluation.report_acceptance import CategoryScores
from specdistill.evaluation.statistics import Estimate
from specdistill.report.wording import estimate

KINDS = {
    "context": "tokens of context",
    "position": "position in the answer",
    "turn": "user turns before the answer",
    "thinking": "thinking",
}
"""Kind of bucket -> its meaning."""


class BucketRow(NamedTuple):
    """One line of the table of buckets."""

    kind: str
    bucket: str
    tokens: int
    alpha: Estimate


def bucket_rows(report: Report) -> list[BucketRow]:
    """The buckets of every split that has more than one: a single bucket says nothing."""
    rows = []
    for kind, meaning in KINDS.items():
        buckets = {} if report.buckets is None else getattr(report.buckets, kind)
        if len(buckets) > 1:
            rows += [
                BucketRow(meaning, name, bucket.tokens, Estimate(bucket.alpha, *bucket.ci95))
                for name, bucket in buckets.items()
            ]
    return rows


def bucket_warnings(report: Report) -> list[str]:
    """Where the draft is accepted far less, and how the texts differ from its training's."""
    buckets = report.buckets
    return [] if buckets is None else [*(low.remark for low in buckets.low), *buckets.unlike_training]


def category_alpha(scores: CategoryScores, rule: str) -> str:
    """Mean alpha of a category, with its interval where there is one."""
    mean = scores.alpha(rule)
    return f"{mean:.3f}" if scores.alpha_ci95 is None else estimate(Estimate(mean, *scores.alpha_ci95))
