"""Tables of `specdistill advise`, on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from specdistill.evaluation.advice import UNKNOWN, Advice, Option, TimedHere, TimedKind, option_name
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
    """The command to type next: of the best option where it pays, else of the draft that needs the least to pay."""
    chosen = next(iter(_worth_trying(advice)), None)
    return "" if chosen is None else chosen.next[0]


def _worth_trying(advice: Advice) -> list[Option]:
    """The best option where it pays, and of those whose acceptance is not known the one that needs the least."""
    best = advice.best
    found = [best] if best.next and (best.predicted_speedup or 0.0) >= _CLOSE else []
    kinds = {} if advice.timed is None else advice.timed.kinds
    able = (one for one in advice.options if one.name in kinds and kinds[one.name].easiest_num_draft_tokens)
    return found + [one for one in able if one.ground == UNKNOWN][:1]


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
    for name in ("draft", "job there", "tokens", "takes here", "alpha there", "speed-up here", "similar"):
        table.add_column(name, justify="left" if name in ("draft", "job there", "similar") else "right")
    for name, one in rows:
        late = ", too long" if one.minutes is not None and not one.in_budget else ""
        speed = f"{one.predicted_speedup:.2f} with {one.num_draft_tokens}"
        cells = [option_name(name), one.job, f"{one.trained_tokens:,}", f"{_minutes(one.minutes)}{late}"]
        table.add_row(*cells, number(one.alpha.mean), speed, "yes" if one.unlike is None else "no")
    console.print(table)
    sources = dict.fromkeys(one.source for _, one in rows)
    console.print(f"sources, in benchmarks/results: {'; '.join(sources)}", soft_wrap=True)
    for job, why in dict.fromkeys((one.job, one.unlike) for _, one in rows):
        console.print(f"{job}: {'similar' if why is None else f'not similar, {why}'}", soft_wrap=True)


def _order(console: Console, advice: Advice) -> None:
    console.print(Text(f"in this order, with {_minutes(advice.training_minutes)} of training:", "bold"))
    shown = _worth_trying(advice)
    for place, option in enumerate(advice.options, start=1):
        speed = "" if option.predicted_speedup is None else f" {option.predicted_speedup:.2f}x,"
        heading = (f"{place}. {option_name(option.name)}:", "bold" if place == 1 else "")
        console.print(Text.assemble(heading, f"{speed} {option.ground}: {option.why}"), soft_wrap=True)
        for line in option.next if option in shown else ():
            console.print(f"   {line}", soft_wrap=True)


def _minutes(minutes: float | None) -> str:
    if minutes is None:
        return "not known"
    return "under 1 min" if minutes < 1 else f"{minutes:,.0f} min"
