"""Puts counts, times and what is known of other targets together: every option with its speed-up, the best first."""

from __future__ import annotations

from collections.abc import Mapping

from specdistill.decoding.costs import Costs
from specdistill.evaluation.advice import (
    APART,
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
from specdistill.evaluation.advice_known import (
    Here,
    Timed,
    best_row,
    compared_study,
    drafts_in_words,
    reached,
    rows_of,
)
from specdistill.evaluation.economics import break_even_alpha, break_even_tokens
from specdistill.evaluation.report_baselines import Baseline
from specdistill.models import LanguageModel


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
        study=None,
        predicted_speedup=1.0,
        num_draft_tokens=None,
        why="without any drafting",
        elsewhere=[],
        next=[],
    )
    found = [plain, *(_counted(name, way, here) for name, way in counted.ways.items())]
    rows = {name: rows_of(one, counted, here) for name, one in timed.items()}
    study = compared_study(rows.values())
    found += [_trained(name, one, rows[name], study, here) for name, one in timed.items()]
    known = [option for option in found if option.predicted_speedup is not None]
    known.sort(key=_place)
    return known + sorted((option for option in found if option not in known), key=lambda one: _needs(one, timed))


def _place(option: Option) -> tuple[str, float]:
    """Sorts options of known speed-ups. Those of each other study stand apart: they don't compare with any others."""
    return (option.study or "") if option.ground == APART else "", -(option.predicted_speedup or 0.0)


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
    tokens = f"{way.mean_acceptance_length.mean:.2f} tokens per target call with {drafts_in_words(length)}"
    cost = "" if way.predicted_speedup is not None else "; the time of such a check was not measured"
    return Option(
        name=name,
        ground=COUNTED if way.predicted_speedup is not None else UNKNOWN,
        study=None,
        predicted_speedup=way.predicted_speedup,
        num_draft_tokens=length,
        why=f"{tokens}, counted on these answers{cost}",
        elsewhere=[],
        next=here.next_of(name, None, length, None),
    )


def _trained(name: str, timed: Timed, rows: list[Elsewhere], study: str | None, here: Here) -> Option:
    kind, best = timed.kind, best_row(rows, study)
    length = kind.easiest_num_draft_tokens if best is None else best.num_draft_tokens
    return Option(
        name=name,
        ground=UNKNOWN if best is None else MEASURED if best.study == study else APART,
        study=None if best is None else best.study,
        predicted_speedup=None if best is None else best.predicted_speedup,
        num_draft_tokens=length,
        why=f"{reached(kind, best, rows, study)}; {_asked(kind)}",
        elsewhere=rows,
        next=here.next_of(name, kind, length, timed.pace),
    )


def _asked(kind: TimedKind) -> str:
    easiest, perfect = kind.easiest_num_draft_tokens, f"a perfect one would give {kind.perfect_draft_speedup:.2f}x"
    if easiest is None:
        return f"it cannot pay here, since {perfect}"
    tokens, alpha = kind.break_even_tokens[easiest], kind.break_even_alpha[easiest]
    falling = " if it did not fall within a round" if kind.falls and easiest > 1 else ""
    return (
        f"it pays above {tokens:.2f} tokens per call with {drafts_in_words(easiest)} (alpha {alpha:.2f}{falling}), "
        f"{perfect}"
    )
