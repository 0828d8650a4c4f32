"""The gaps of an advice, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from specdistill.evaluation.advice import (
    HEAD,
    INDEPENDENT,
    PARALLEL,
    UNKNOWN,
    CountedAnswers,
    Option,
    TimedHere,
    option_name,
)
from specdistill.evaluation.disturbed import disturbed_checks
from specdistill.evaluation.known_results import KnownResults

_LEAST_COVERED = 0.95
_KINDS = {INDEPENDENT: "an ordinary draft", PARALLEL: "a parallel draft", HEAD: "an EAGLE-3 head"}
"""Kind of a timed draft -> its name, for people."""


def unknowns(
    options: Sequence[Option],
    counted: CountedAnswers,
    timed: TimedHere | None,
    known: KnownResults,
    left_out: Sequence[str],
    written: bool,
) -> list[str]:
    """The sentences.

    Args:
        options: Everything that could be served.
        counted: What was counted.
        timed: What was timed; None where steps can't be timed here.
        known: The table of other targets.
        left_out: Why some kinds of drafts were not timed.
        written: Whether the target wrote the answers itself.
    """
    lines = ["what a step costs: none was timed in this process"] if timed is None else _costs(timed)
    kinds = set() if timed is None else {kind.kind for kind in timed.kinds.values()}
    lines += [
        f"what {_KINDS[kind]} accepts: none was measured for any target yet"
        for kind in sorted(kinds)
        if not any(draft.kind == kind for draft in known.drafts)
    ]
    unmeasured = [option_name(one.name) for one in options if one.ground == UNKNOWN and one.elsewhere]
    if unmeasured:
        lines.append(
            f"what these would accept: {', '.join(unmeasured)}. They were measured for other targets only, or with "
            "more training; a short training and a bench tell"
        )
    if not written:
        lines.append("whether the target itself wrote these answers: counts hold for text that it writes")
    lines.append(
        f"what suffix decoding copies in a server that has seen more than these {counted.answers} answers; it grows"
    )
    if counted.head_covers is not None and counted.head_covers < _LEAST_COVERED:
        lines.append(
            f"how far a larger output head would reach: {counted.head_size} ids hold {counted.head_covers:.2%} of the "
            "target's probability on these answers, and alpha stays below that; raise --vocab-keep"
        )
    return [*lines, *left_out]


def _costs(timed: TimedHere) -> list[str]:
    lines = [
        "what a round costs in your server: steps were timed in this decoder, and engines differ; bench --engine "
        "measures there"
    ]
    remark = disturbed_checks(timed.verify_cost)
    if remark is not None:
        lines.append(f"what a round costs here: {remark}; run this again on a quiet machine")
    return lines
