"""The verdict and what to do next, the same for terminal and page."""

from __future__ import annotations

from typing import NamedTuple

from specdistill.evaluation.recommendation import AGAIN, MORE_PROMPTS, NO_TRAINING, WAYS, Recommendation
from specdistill.evaluation.report import Report
from specdistill.report.wording import LOSSY, estimate

_NEXT = {
    "pays": "Deploy with this draft length.",
    "does not pay": "Train longer and on your own prompts, or take a smaller draft or another draft length.",
    "cannot pay": NO_TRAINING,
    "unknown": "",
}


class Verdict(NamedTuple):
    """The answer that a reader came for."""

    headline: str
    """The way to serve, in a few words."""
    why: str
    next: str
    """The next step; "" where none is known."""
    is_command: bool
    """Whether that is a command."""
    good: bool
    """Whether something is faster than the plain target."""


def verdict(report: Report) -> Verdict:
    """The recommendation; without one, the verdict on the draft.

    With --scorer the draft may be a student that is served alone: nothing is advised where it does not pay as a draft.
    """
    found = _about_drafting(report)
    return found if found.good or report.score is None else found._replace(next="", is_command=False)


def _about_drafting(report: Report) -> Verdict:
    found = report.recommendation
    if found is not None:
        command = found.next.startswith("specdistill ")
        good = found.serve not in ("nothing", "undecided")
        # The free ways beside it are exact, so that their speed is not the whole comparison.
        lossy = f" {LOSSY}." if report.lossless.lossy and "draft" in found.serve else ""
        return Verdict(_recommended(found), _sentence(found.why + lossy), found.next, command, good)
    economics, length = report.economics, report.setup.num_draft_tokens
    headline = {
        "pays": f"Serve the draft with {tokens(length)}: {estimate(report.latency.speedup, 2)} times as fast",
        "does not pay": "Don't serve this draft: it does not pay",
        "cannot pay": "Don't serve this draft: it cannot pay here",
        "undecided": "Undecided",
    }.get(economics.verdict, "No verdict: decoding was not timed")
    good = economics.verdict == "pays"
    more = AGAIN if report.latency.speedup.has_interval else MORE_PROMPTS
    todo = more if economics.verdict == "undecided" else _NEXT.get(economics.verdict, "")
    return Verdict(headline, _sentence(economics.why), todo, False, good)


def _recommended(found: Recommendation) -> str:
    if found.serve == "undecided":
        return "Undecided"
    words = f"Serve {WAYS.get(found.serve, found.serve)}"
    if found.num_draft_tokens is None:
        return words.rstrip(",")
    return f"{words} with {tokens(found.num_draft_tokens)}"


def tokens(count: int, kind: str = "") -> str:
    """`1 token`, `3 draft tokens`."""
    name = f"{kind} token".strip()
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _sentence(text: str) -> str:
    """The text with a capital, without its full stop."""
    return (text[:1].upper() + text[1:]).rstrip(".")
