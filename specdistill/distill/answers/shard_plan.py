"""Which answers a directory of shards still lacks, found by the content of the prompts that it answers.

A fresh directory gets one shard after the other in a fixed order. Where the prompts have changed since, finished
shards are left alone, and what they lack is written to further ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specdistill.data.prompts import Prompt
from specdistill.distill.answers.matching import prompts_of
from specdistill.files import parquet

SHARD = "train-{:05d}.parquet"


@dataclass(frozen=True)
class ShardWork:
    """One shard: what it still needs."""

    number: int
    copy: int
    chosen: tuple[int, ...]
    """Indices of the prompts to answer; empty where the shard is finished."""
    answered: int = 0
    """Answers of this part of the work that are there already."""


@dataclass(frozen=True)
class ShardPlan:
    """All shards of a set of prompts, and what else lies in the directory."""

    shards: list[ShardWork]
    strangers: int
    """Stored answers to none of the prompts."""
    changed: bool
    """Whether a finished shard lacks some of its prompts, as after a change of the prompts."""

    def remark(self, directory: Path) -> str | None:
        """Says that the prompts have changed since the directory was begun; None where they have not."""
        if not (self.strangers or self.changed):
            return None
        missing = sum(len(shard.chosen) for shard in self.shards)
        answered = sum(shard.answered for shard in self.shards)
        left = f", {self.strangers} to prompts that are no longer asked are left alone" if self.strangers else ""
        return (
            f"{directory}: the prompts have changed since it was begun; {answered} answers are kept, {missing} are "
            f"missing and written now{left}"
        )


def plan_shards(
    prompts: Sequence[Prompt], encoded: Sequence[list[int]], shard_size: int, copies: int, directory: Path
) -> ShardPlan:
    """Splits `copies` answers to each prompt into shards; those that are there already are not asked again.

    Args:
        prompts, encoded: What to answer.
        shard_size: Answers per shard.
        copies: Answers per prompt. A shard never holds two copies: all first answers come first, then all second.
        directory: Where shards may be already.

    Raises:
        DataError: A shard can't be read.
    """
    # Prompts of like length share a batch: padding costs as much as tokens.
    order = sorted(range(len(prompts)), key=lambda index: (len(encoded[index]), index))
    parts = [order[start : start + shard_size] for start in range(0, len(order), shard_size)]
    done, strangers = _answered(directory, prompts, encoded)
    work: list[ShardWork] = []
    late: list[ShardWork] = []
    for copy in range(copies):
        unwritten: list[int] = []
        for number, part in enumerate(parts, start=copy * len(parts)):
            missing = [index for index in part if (index, copy) not in done]
            answered = len(part) - len(missing)
            if missing and (directory / SHARD.format(number)).exists():
                unwritten += missing
                missing = []
            work.append(ShardWork(number, copy, tuple(missing), answered))
        for start in range(0, len(unwritten), shard_size):
            late.append(ShardWork(-1, copy, tuple(unwritten[start : start + shard_size])))
    free = max([copies * len(parts) - 1, *_numbers(directory)]) + 1
    further = [ShardWork(free + place, shard.copy, shard.chosen) for place, shard in enumerate(late)]
    return ShardPlan(work + further, strangers, bool(late))


def _answered(
    directory: Path, prompts: Sequence[Prompt], encoded: Sequence[list[int]]
) -> tuple[set[tuple[int, int]], int]:
    """(index of the prompt, copy) of every answer that is there, and the number of those to no prompt."""
    columns = ("prompt_id", "prompt_ids", "copy")
    rows = [row for shard in sorted(directory.glob("*.parquet")) for row in parquet.read(shard, *columns)]
    index = {prompt.id: number for number, prompt in enumerate(prompts)}
    names = prompts_of(rows, prompts, encoded)
    done = {(index[name], row.get("copy", 0)) for row, name in zip(rows, names, strict=True) if name is not None}
    return done, sum(name is None for name in names)


def _numbers(directory: Path) -> list[int]:
    found = [re.fullmatch(r"train-(\d+)\.parquet", path.name) for path in directory.glob("train-*.parquet")]
    return [int(match[1]) for match in found if match]
