"""Puts counts, times and what is known of other targets together: every option with its speed-up, the best first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from specdistill.decoding.costs import Costs
from specdistill.evaluation.advice import (
    CERTAIN,
    COUNTED,
    MEASURED,
    NOTHING,
    UNKNOWN,
    CountedAnswers,
    Elsewhere,
    Option,
    TimedKind,
)
from specdistill.evaluation.economics import break_even_alpha, break_even_tokens
from specdistill.evaluation.known_results import KnownDraft, KnownPoint, KnownResults
from specdistill.evaluation.report_baselines import Baseline
from specdistill.evaluation.training_pace import TrainingPace
from specdistill.models import LanguageModel


@dataclass(frozen=True)
class Timed:
    """A kind of draft, its costs, and how fast it trains here (None where that was not timed)."""

    kind: TimedKind
    costs: Costs
    pace: TrainingPace | None = None


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
    next_of: Callable[[str, TimedKind | None, int | None, TrainingPace | None], list[str]]
    """(option, its draft, draft length, its pace) -> commands."""


def timed_kind(kind: str, layers: int | None, draft: LanguageModel, costs: Costs, longest: int) -> TimedKind:
    """Says what the costs of a draft ask of its acceptance.

    Args:
        kind, layers: What it is.
        draft: The shape that was timed.
        costs: Of single steps.
        longest: Longest draft length that they cover.
    """
    lengths = range(1, longest + 1)
    tokens = {length: break_even_tokens(costs, length) for length in lengths}
    alphas = {length: None if needed is None else break_even_alpha(length, needed) for length, needed in tokens.items()}
    reachable = {length: alpha for length, alpha in alphas.items() if alpha is not None}
    rounds = {length: costs.round_cost(length, length + 1) for length in lengths}
    return TimedKind(
        kind=kind,
        layers=layers,
        parameters=draft.num_parameters,
        cost_ratio=costs.cost_ratio,
        draft_step_seconds=costs.draft_step_seconds,
        round_cost=rounds,
        break_even_tokens=tokens,
        break_even_alpha=alphas,
        easiest_num_draft_tokens=min(reachable, key=lambda length: reachable[length]) if reachable else None,
        perfect_draft_speedup=max((length + 1) / cost for length, cost in rounds.items()),
    )


def make_options(counted: CountedAnswers, timed: Mapping[str, Timed], here: Here) -> list[Option]:
    """Every option, in order.

    Args:
        counted: What was counted on the answers.
        timed: Name of an option -> its draft; empty where the steps could not be timed.
        here: The rest that options are compared by.
    """
    plain = Option(
        name=NOTHING,
        ground=CERTAIN,
        predicted_speedup=1.0,
        num_draft_tokens=None,
        why="without any drafting",
        elsewhere=[],
        next=[],
    )
    found = [plain, *(_counted(name, way, here) for name, way in counted.ways.items())]
    found += [_trained(name, one, counted, here) for name, one in timed.items()]
    known = [option for option in found if option.predicted_speedup is not None]
    known.sort(key=lambda option: -(option.predicted_speedup or 0.0))
    return known + sorted((option for option in found if option not in known), key=lambda one: _needs(one, timed))


def _needs(option: Option, timed: Mapping[str, Timed]) -> float:
    """Least alpha that an option of unknown acceptance needs; those that cannot pay come last."""
    if option.name not in timed:
        return 2.0
    kind = timed[option.name].kind
    easiest = kind.easiest_num_draft_tokens
    alpha = None if easiest is None else kind.break_even_alpha[easiest]
    return 3.0 if alpha is None else alpha


def _counted(name: str, way: Baseline, here: Here) -> Option:
    length = int(way.settings["num_draft_tokens"])
    tokens = f"{way.mean_acceptance_length.mean:.2f} tokens per target call with {_drafts(length)}"
    cost = "" if way.predicted_speedup is not None else "; the time of such a check was not measured"
    return Option(
        name=name,
        ground=COUNTED if way.predicted_speedup is not None else UNKNOWN,
        predicted_speedup=way.predicted_speedup,
        num_draft_tokens=length,
        why=f"{tokens}, counted on these answers{cost}",
        elsewhere=[],
        next=here.next_of(name, None, length, None),
    )


def _trained(name: str, timed: Timed, counted: CountedAnswers, here: Here) -> Option:
    kind = timed.kind
    # The most similar answers first, so that the first that counts says most.
    drafts = sorted(
        here.known.of(kind.kind, kind.layers), key=lambda draft: here.known.jobs[draft.job].distance(counted.kind)
    )
    elsewhere = [one for one in (_elsewhere(draft, timed, counted, here) for draft in drafts) if one is not None]
    elsewhere.sort(key=lambda one: one.unlike is not None)
    best = next((one for one in elsewhere if one.unlike is None and one.in_budget), None)
    length = kind.easiest_num_draft_tokens if best is None else best.num_draft_tokens
    return Option(
        name=name,
        ground=UNKNOWN if best is None else MEASURED,
        predicted_speedup=None if best is None else best.predicted_speedup,
        num_draft_tokens=length,
        why=f"{_reached(best, elsewhere)}; {_asked(kind)}",
        elsewhere=elsewhere,
        next=here.next_of(name, kind, length, timed.pace),
    )


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
        unlike=here.known.unlike(draft, here.parameters, counted.kind),
        trained_tokens=point.tokens,
        minutes=minutes,
        in_budget=bool(affordable),
        alpha=point.alpha[here.rule],
        num_draft_tokens=length,
        tokens_per_call=tokens,
        predicted_speedup=speedup,
    )


def _minutes(point: KnownPoint, pace: TrainingPace | None) -> float | None:
    return None if pace is None else pace.seconds(point.tokens) / 60


def _best(point: KnownPoint, timed: Timed, here: Here) -> tuple[int, float, float] | None:
    """(draft length, tokens per call, speed-up) of the length that pays most with an acceptance."""
    falls, found = timed.kind.falls, []
    for length in range(1, here.max_draft_tokens + 1):
        tokens = point.calls(here.rule, length, falls)
        if tokens is not None:
            found.append((length, tokens, tokens / timed.costs.round_cost(length, tokens)))
    return max(found, key=lambda one: one[2], default=None)


def _reached(best: Elsewhere | None, elsewhere: Sequence[Elsewhere]) -> str:
    if best is not None:
        minutes = "" if best.minutes is None else f", {best.minutes:,.0f} minutes here"
        return (
            f"such a draft reached alpha {best.alpha.mean:.2f} on {best.job} with {best.trained_tokens:,} tokens of "
            f"training{minutes}, which is {best.tokens_per_call:.2f} tokens per target call with "
            f"{_drafts(best.num_draft_tokens)}"
        )
    late = next((one for one in elsewhere if one.unlike is None), None)
    if late is None:
        return "acceptance is not known: none was measured for a similar target"
    took = "an unknown time" if late.minutes is None else f"{late.minutes:,.0f} minutes"
    return (
        f"acceptance within the budget is not known: the shortest similar training that was measured takes {took} here"
    )


def _asked(kind: TimedKind) -> str:
    easiest, perfect = kind.easiest_num_draft_tokens, f"a perfect one would give {kind.perfect_draft_speedup:.2f}x"
    if easiest is None:
        return f"it cannot pay here, since {perfect}"
    tokens, alpha = kind.break_even_tokens[easiest], kind.break_even_alpha[easiest]
    falling = " if it did not fall within a round" if kind.falls and easiest > 1 else ""
    return f"it pays above {tokens:.2f} tokens per call with {_drafts(easiest)} (alpha {alpha:.2f}{falling}), {perfect}"


def _drafts(count: int) -> str:
    return f"{count} draft token" + ("" if count == 1 else "s")
