"""Acceptance of other targets' drafts, with the costs of this machine, and the study that drafts are compared by.

Two studies judged their drafts on different prompts, after different training. So speed-ups that follow from them are
compared within one study only: the one that says something of the most options.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from specdistill.decoding.costs import Costs
from specdistill.evaluation.advice import CountedAnswers, Elsewhere, TimedKind
from specdistill.evaluation.known_results import KnownDraft, KnownPoint, KnownResults
from specdistill.evaluation.training_pace import ParallelPace, TrainingPace

Pace = TrainingPace | ParallelPace


@dataclass(frozen=True)
class Timed:
    """A kind of draft, its costs, and how fast it trains here (None where that was not timed)."""

    kind: TimedKind
    costs: Costs
    pace: Pace | None = None


@dataclass(frozen=True)
class Here:
    """Everything beside counts and times that options are compared by."""

    parameters: int
    """Parameters of the target."""
    rule: str
    """How the server accepts."""
    max_draft_tokens: int
    minutes: float
    """Budget of training."""
    known: KnownResults
    next_of: Callable[[str, TimedKind | None, int | None, Pace | None], list[str]]
    """(option, its draft, draft length, its pace) -> commands."""


def rows_of(timed: Timed, counted: CountedAnswers, here: Here) -> list[Elsewhere]:
    """Results of one kind of draft elsewhere: similar targets and answers first, the most similar answers first.

    Args:
        timed: The kind of draft.
        counted: What was counted on the answers here.
        here: The rest that options are compared by.
    """
    drafts = sorted(
        here.known.of(timed.kind.kind, timed.kind.layers),
        key=lambda draft: here.known.jobs[draft.job].distance(counted.kind),
    )
    rows = [one for one in (_elsewhere(draft, timed, counted, here) for draft in drafts) if one is not None]
    return sorted(rows, key=lambda one: one.unlike is not None)


def compared_study(rows: Iterable[Sequence[Elsewhere]]) -> str | None:
    """The study that says something similar, within the budget, of the most options; None where none does.

    Args:
        rows: Those of each option.
    """
    said = Counter(study for each in rows for study in dict.fromkeys(one.study for one in each if _counts(one)))
    # Of two that say as much the first, which is of the more similar answers.
    return max(said, key=lambda study: said[study], default=None)


def best_row(rows: Sequence[Elsewhere], study: str | None) -> Elsewhere | None:
    """The row that an option's speed-up rests on: the compared study's, else another's; None where none counts."""
    able = sorted((one for one in rows if _counts(one)), key=lambda one: one.study != study)
    return next(iter(able), None)


def reached(kind: TimedKind, best: Elsewhere | None, rows: Sequence[Elsewhere], study: str | None) -> str:
    """Acceptance of such a draft elsewhere, in words.

    Args:
        kind: The draft.
        best: The row that counts, if any.
        rows: All rows.
        study: The study that the options are compared by.
    """
    if best is not None:
        first = " of a round's first token" if kind.falls else ""
        minutes = "" if best.minutes is None else f", {best.minutes:,.0f} minutes here{_with_ordinary(best)}"
        apart = "" if best.study == study else f", which does not compare with {study}: prompts and training differ"
        return (
            f"in {best.study} such a draft reached alpha {best.alpha.mean:.2f}{first} on {best.job} with "
            f"{best.trained_tokens:,} tokens of training{minutes}, which is {best.tokens_per_call:.2f} tokens per "
            f"target call with {drafts_in_words(best.num_draft_tokens)}{apart}"
        )
    late = min(
        (one for one in rows if one.unlike is None),
        key=lambda one: (one.minutes is None, one.minutes or 0.0),
        default=None,
    )
    if late is None:
        return "acceptance is not known: none was measured for a similar target"
    took = "an unknown time" if late.minutes is None else f"{late.minutes:,.0f} minutes"
    return (
        f"acceptance within the budget is not known: the shortest similar training that was measured takes {took} here"
        f"{_with_ordinary(late)}"
    )


def drafts_in_words(count: int) -> str:
    """`1 draft token`, `2 draft tokens`."""
    return f"{count} draft token" + ("" if count == 1 else "s")


def _counts(row: Elsewhere) -> bool:
    return row.unlike is None and row.in_budget


def _with_ordinary(row: Elsewhere) -> str:
    return " with the ordinary training before it" if row.ordinary_tokens else ""


def _elsewhere(draft: KnownDraft, timed: Timed, counted: CountedAnswers, here: Here) -> Elsewhere | None:
    """The draft's best point within the budget, else its shortest training; None where none has the rule."""
    points = [(_minutes(point, timed.pace), point, _best(point, timed, here)) for point in draft.points]
    ready = [(minutes, point, best) for minutes, point, best in points if best is not None]
    if not ready:
        return None
    affordable = [one for one in ready if one[0] is not None and one[0] <= here.minutes]
    if affordable:
        minutes, point, best = max(affordable, key=lambda one: one[2][2])
    else:
        minutes, point, best = min(ready, key=lambda one: one[1].tokens)
    length, tokens, speedup = best
    return Elsewhere(
        job=here.known.jobs[draft.job].name,
        target=draft.target,
        target_parameters=draft.target_parameters,
        source=point.source,
        study=draft.study,
        unlike=here.known.unlike(draft, here.parameters, counted.kind),
        trained_tokens=point.tokens,
        ordinary_tokens=point.ordinary_tokens,
        minutes=minutes,
        in_budget=bool(affordable),
        alpha=point.alpha[here.rule],
        num_draft_tokens=length,
        tokens_per_call=tokens,
        predicted_speedup=speedup,
    )


def _minutes(point: KnownPoint, pace: Pace | None) -> float | None:
    if pace is None:
        return None
    if isinstance(pace, ParallelPace):
        return pace.seconds(point.ordinary_tokens, point.tokens - point.ordinary_tokens) / 60
    return pace.seconds(point.tokens) / 60


def _best(point: KnownPoint, timed: Timed, here: Here) -> tuple[int, float, float] | None:
    """(draft length, tokens per call, speed-up) of the length that pays most with an acceptance."""
    falls, found = timed.kind.falls, []
    for length in range(1, here.max_draft_tokens + 1):
        tokens = point.calls(here.rule, length, falls)
        if tokens is not None:
            found.append((length, tokens, tokens / timed.costs.round_cost(length, tokens)))
    return max(found, key=lambda one: one[2], default=None)
