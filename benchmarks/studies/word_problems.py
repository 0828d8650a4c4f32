"""Arithmetic word problems with several right ways to the answer, drawn from a seed.

    python benchmarks/studies/word_problems.py --count 2000 --seed 1 --output problems.jsonl

Each record is a short story with two or three steps of arithmetic on numbers below 100, and one worked solution that
ends in "The answer is N." The same problem can be solved in several orders and told in several ways; which of them the
answer takes is drawn too. So a model that has learnt the task spreads over right solutions, where mails to JSON
(`service_mail.py`) have exactly one.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NAMES = (
    "Amara", "Bruno", "Chloe", "Daniel", "Elena", "Felix", "Hana", "Igor", "Julia", "Karim", "Lars", "Maria",
    "Noah", "Olga", "Priya", "Rosa", "Sven", "Tomas", "Uma", "Victor", "Wei", "Yuki",
)  # fmt: skip
THINGS = (
    "apples", "pencils", "stickers", "marbles", "books", "shells", "coins", "cards", "buttons", "stamps",
    "cookies", "balloons",
)  # fmt: skip
BOXES = ("boxes", "bags", "packs", "baskets")


@dataclass(frozen=True)
class Problem:
    """A story and all ways of solving it."""

    kind: str
    question: str
    solutions: tuple[tuple[str, ...], ...]
    """Each a run of steps such as `3 * 6 = 18`."""
    result: int


def _bought(pick: random.Random) -> Problem:
    start, packs, size = pick.randint(5, 30), pick.randint(2, 6), pick.randint(3, 9)
    given = pick.randint(2, min(12, start - 1))
    name, thing, box = pick.choice(NAMES), pick.choice(THINGS), pick.choice(BOXES)
    bought, result = packs * size, start + packs * size - given
    question = (
        f"{name} has {start} {thing}, buys {packs} {box} of {size} {thing} each and gives {given} {thing} away. "
        f"How many {thing} does {name} have now?"
    )
    product = f"{packs} * {size} = {bought}"
    ways = (
        (product, f"{start} + {bought} = {start + bought}", f"{start + bought} - {given} = {result}"),
        (f"{start} - {given} = {start - given}", product, f"{start - given} + {bought} = {result}"),
        (product, f"{bought} - {given} = {bought - given}", f"{start} + {bought - given} = {result}"),
    )
    return Problem("bought", question, ways, result)


def _together(pick: random.Random) -> Problem:
    first, more = pick.randint(4, 30), pick.randint(2, 15)
    one, other = pick.sample(NAMES, 2)
    thing = pick.choice(THINGS)
    second, result = first + more, 2 * first + more
    question = (
        f"{one} has {first} {thing}. {other} has {more} {thing} more than {one}. "
        f"How many {thing} do they have together?"
    )
    ways = (
        (f"{first} + {more} = {second}", f"{first} + {second} = {result}"),
        (f"2 * {first} = {2 * first}", f"{2 * first} + {more} = {result}"),
    )
    return Problem("together", question, ways, result)


def _change(pick: random.Random) -> Problem:
    price, count, extra = pick.randint(2, 9), pick.randint(2, 6), pick.randint(2, 15)
    total = price * count + extra
    paid = next(note for note in (20, 50, 100) if note > total)
    name, thing = pick.choice(NAMES), pick.choice(THINGS)
    result = paid - total
    question = (
        f"{name} buys {count} {thing} for {price} dollars each and a pen for {extra} dollars, and pays with {paid} "
        f"dollars. How many dollars does {name} get back?"
    )
    product = f"{count} * {price} = {price * count}"
    ways = (
        (product, f"{price * count} + {extra} = {total}", f"{paid} - {total} = {result}"),
        (
            product,
            f"{paid} - {price * count} = {paid - price * count}",
            f"{paid - price * count} - {extra} = {result}",
        ),
        (f"{paid} - {extra} = {paid - extra}", product, f"{paid - extra} - {price * count} = {result}"),
    )
    return Problem("change", question, ways, result)


def _rows(pick: random.Random) -> Problem:
    rows, size, taken = pick.randint(3, 8), pick.randint(3, 9), pick.randint(1, 2)
    added = pick.randint(2, 15)
    thing = pick.choice(THINGS)
    left, gone = rows - taken, "One row is" if taken == 1 else "Two rows are"
    result = left * size + added
    question = (
        f"A shelf has {rows} rows of {size} {thing} each. {gone} taken away, and then {added} {thing} "
        f"are added. How many {thing} are on the shelf?"
    )
    ways = (
        (f"{rows} - {taken} = {left}", f"{left} * {size} = {left * size}", f"{left * size} + {added} = {result}"),
        (
            f"{rows} * {size} = {rows * size}",
            f"{taken} * {size} = {taken * size}",
            f"{rows * size} - {taken * size} = {left * size}",
            f"{left * size} + {added} = {result}",
        ),
    )
    return Problem("rows", question, ways, result)


KINDS: tuple[Callable[[random.Random], Problem], ...] = (_bought, _together, _change, _rows)


def _told(steps: tuple[str, ...], result: int, pick: random.Random) -> str:
    """One solution in one of several wordings."""
    joined = pick.choice((
        lambda: ". ".join(steps) + ".",
        lambda: "First " + ", then ".join(steps) + ".",
        lambda: " ".join(f"Step {number}: {step}." for number, step in enumerate(steps, 1)),
    ))()  # fmt: skip
    return f"{joined} The answer is {result}."


def record(pick: random.Random, number: int) -> dict[str, Any]:
    """One problem: `id`, `prompt`, `answer` (a worked solution), `category` (the kind of story)."""
    problem = pick.choice(KINDS)(pick)
    answer = _told(pick.choice(problem.solutions), problem.result, pick)
    return {"id": f"problem-{number}", "prompt": problem.question, "answer": answer, "category": problem.kind}


def records(count: int, seed: int) -> list[dict[str, Any]]:
    """`count` records; the same for the same seed on every machine."""
    pick = random.Random(seed)
    return [record(pick, number) for number in range(count)]


def write_records(path: Path, count: int, seed: int) -> None:
    """Writes `count` records as JSON lines."""
    path.write_text("".join(json.dumps(problem) + "\n" for problem in records(count, seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write_records(options.output, options.count, options.seed)


if __name__ == "__main__":
    main()
