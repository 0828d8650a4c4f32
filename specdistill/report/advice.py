"""Tables of `specdistill advise`, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdistill.evaluation.advice import (
    APART,
    INDEPENDENT,
    MEASURED,
    UNKNOWN,
    Advice,
    Elsewhere,
    Option,
    TimedHere,
    TimedKind,
    option_name,
)
from specdistill.report.console import plain_console
from specdistill.report.wording import estimate, number

_CLOSE = 1.05
"""Speed-ups below are too close to 1 to be told from noise by single steps."""


def advice_tables(advice: Advice) -> None:
    """Prints an advice."""
    console, setup, target = plain_console(), advice.setup, advice.target
    console.print(
        f"target {target.name} ({target.parameters / 1e6:.1f}M)   {setup.device}, {setup.threads} threads, "
        f"{target.dtype}, batch {setup.batch_size}   rule {setup.rule}",
        soft_wrap=True,
    )
    if advice.partial is not None:
        console.print(Text.assemble(("INCOMPLETE", "bold"), f": {advice.partial.why}"), soft_wrap=True)
    _counted(console, advice)
    if advice.timed is not None:
        _timed(console, advice.timed)
    _known(console, advice)
    for line in advice.not_known:
        console.print(f"not known: {line}", soft_wrap=True)
    _order(console, advice)


def next_step(advice: Advice) -> str:
    """The command to type next: of the best option where it pays, else of a draft that pays by another study, else of
    the draft that needs the least to pay."""
    kinds = {} if advice.timed is None else advice.timed.kinds
    able = [one for one in advice.options if one.name in kinds and kinds[one.name].easiest_num_draft_tokens]
    worth = [one for one in (advice.best, *(one for one in able if one.ground == APART)) if _pays(one)]
    worth += [one for one in able if one.ground == UNKNOWN]
    return worth[0].next[0] if worth else ""


def _pays(option: Option) -> bool:
    return bool(option.next) and (option.predicted_speedup or 0.0) >= _CLOSE


def _counted(console: Console, advice: Advice) -> None:
    counted = advice.counted
    wrote = "that the target wrote now" if counted.source == "target" else f"of --answers {counted.source}"
    table = Table(title=f"counted on {counted.answers} answers {wrote}, {counted.tokens:,} tokens")
    for name in ("way", "draft tokens", "tokens per target call", "speed-up"):
        table.add_column(name, justify="left" if name == "way" else "right")
    for name, way in counted.ways.items():
        speed = "not timed" if way.predicted_speedup is None else number(way.predicted_speedup)
        length = str(way.settings["num_draft_tokens"])
        table.add_row(option_name(name), length, estimate(way.mean_acceptance_length, 2), speed)
    console.print(table)
    kind = counted.kind
    console.print(
        f"the target's likeliest token has probability {estimate(kind.certainty)}; of the answers' runs of 4 tokens "
        f"{estimate(kind.copied_4grams)} stand in the prompt",
        soft_wrap=True,
    )
    if counted.head_size is not None and counted.head_covers is not None:
        console.print(
            f"{counted.head_size:,} ids hold {counted.head_covers:.2%} of its probability: the trimmed head of the "
            "drafts below",
            soft_wrap=True,
        )


def _timed(console: Console, timed: TimedHere) -> None:
    table = Table(title="timed here: drafts without training, in plain target steps")
    for name in ("draft", "step", "pays above: tokens per call", "alpha", "perfect", "trains, tokens/s"):
        table.add_column(name, justify="left" if name == "draft" else "right")
    for name, kind in timed.kinds.items():
        table.add_row(option_name(name), *_cells(kind))
    console.print(table)
    checks = ", ".join(f"{width}: {cost:.2f}" for width, cost in timed.verify_cost.items() if width > 1)
    console.print(
        f"a plain target step takes {1000 * timed.target_step_seconds:,.1f} ms behind {timed.context} tokens; checking "
        f"{checks}",
        soft_wrap=True,
    )
    speeds = {"writes": timed.writing_tokens_per_second, "reads": timed.reading_tokens_per_second}
    known = ", ".join(f"{verb} {speed:,.1f}" for verb, speed in speeds.items() if speed is not None)
    if known:
        console.print(f"the target {known} answer tokens per second", soft_wrap=True)


def _cells(kind: TimedKind) -> list[str]:
    length = kind.easiest_num_draft_tokens
    speed = "" if kind.training_tokens_per_second is None else f"{kind.training_tokens_per_second:,.0f}"
    step, perfect = f"{kind.cost_ratio:.3f}", f"{kind.perfect_draft_speedup:.2f}"
    if length is None:
        return [step, "never", "", perfect, speed]
    # At more than one draft token those kinds need more of the first, since later ones are accepted less often.
    more = "+" if kind.falls and length > 1 else ""
    tokens = f"{number(kind.break_even_tokens[length])} with {length}"
    return [step, tokens, f"{number(kind.break_even_alpha[length])}{more}", perfect, speed]


def _known(console: Console, advice: Advice) -> None:
    rows = [(option.name, one) for option in advice.options for one in option.elsewhere]
    if not rows:
        return
    budget = _minutes(advice.training_minutes)
    table = Table(title=f"measured for other targets, and what it would bring here; budget {budget}")
    # The others are narrow, so that a study's name, which a number rests on, is not cut off in 80 columns.
    widths = {
        "draft": 11,
        "job there, study": None,
        "tokens": 9,
        "takes here": 10,
        "alpha there": 6,
        "speed-up here": 9,
    }
    for name, width in widths.items():
        justify = "left" if name in ("draft", "job there, study") else "right"
        table.add_column(name, justify=justify, max_width=width)
    for name, one in rows:
        late = ", too long" if one.minutes is not None and not one.in_budget else ""
        speed = f"{one.predicted_speedup:.2f} with {one.num_draft_tokens}"
        job = one.job if one.unlike is None else f"{one.job} (not similar)"
        cells = [option_name(name), f"{job}, {_study(one)}", f"{one.trained_tokens:,}"]
        # One alpha is all that an ordinary draft has; others are accepted less often from token to token.
        alpha = number(one.alpha.mean) if _is_ordinary(name) else f"{number(one.alpha.mean)} first"
        table.add_row(*cells, f"{_minutes(one.minutes)}{late}", alpha, speed)
    console.print(table)
    _explained(console, advice, rows)
    sources = dict.fromkeys(one.source for _, one in rows)
    console.print(f"sources, in benchmarks/results: {'; '.join(sources)}", soft_wrap=True)
    for job, why in dict.fromkeys((one.job, one.unlike) for _, one in rows):
        console.print(f"{job}: {'similar' if why is None else f'not similar, {why}'}", soft_wrap=True)


def _study(row: Elsewhere) -> str:
    return row.study.removesuffix(".json")


def _is_ordinary(name: str) -> bool:
    return name.partition("-")[0] == INDEPENDENT


def _explained(console: Console, advice: Advice, rows: list[tuple[str, Elsewhere]]) -> None:
    """Says how the table's numbers are to be read."""
    if len({one.study for _, one in rows}) > 1:
        by = next((one.study for one in advice.options if one.ground == MEASURED), None)
        ranked = "" if by is None else f"; the order below compares drafts by {by} alone"
        console.print(
            f"speed-ups of two studies do not compare, since their prompts and training differ{ranked}", soft_wrap=True
        )
    if any(not _is_ordinary(name) for name, _ in rows):
        console.print("first: alpha of a round's first token alone; later ones are accepted less often", soft_wrap=True)
    if any(one.ordinary_tokens for _, one in rows):
        console.print("tokens and time of a parallel draft hold the ordinary training before it", soft_wrap=True)


def _order(console: Console, advice: Advice) -> None:
    console.print(Text(f"in this order, with {_minutes(advice.training_minutes)} of training:", "bold"))
    for place, option in enumerate(advice.options, start=1):
        speed = "" if option.predicted_speedup is None else f" {option.predicted_speedup:.2f}x,"
        heading = (f"{place}. {option_name(option.name)}:", "bold" if place == 1 else "")
        console.print(Text.assemble(heading, f"{speed} {option.ground}: {option.why}"), soft_wrap=True)
        for line in option.next:
            console.print(f"   {line}", soft_wrap=True)


def _minutes(minutes: float | None) -> str:
    if minutes is None:
        return "not known"
    return "under 1 min" if minutes < 1 else f"{minutes:,.0f} min"
