"""Prompts that a target wrote, kept in a folder: draws in shards, and a prompts file for each number asked for.

A shard takes its name only when it is whole, so that a kill costs one shard. A prompts file is never written twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from specdistill.data.opening import Opening
from specdistill.data.readers import read_jsonl, read_text
from specdistill.data.self_draws import REASONS, Draw, SortedDraws
from specdistill.errors import DataError
from specdistill.files import atomic
from specdistill.settings.self_prompts import SelfSource

DRAWS_PER_SHARD = 64
"""Draws of one shard, which are sampled in one batch."""
_IDENTITY = "written_by.json"
_SHARD = "draws-{:05d}.jsonl"


@dataclass(frozen=True)
class Identity:
    """Everything that decides which prompts a target writes."""

    target: str
    """Hash of the target's content."""
    template: str | None
    """Hash of its chat template."""
    chat_template_kwargs: str | None
    raw_prompts: bool
    system: str | None
    temperature: float
    top_p: float
    max_tokens: int
    seed: int

    @property
    def key(self) -> str:
        """Short name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


class SelfStore:
    """Prompts of one target under one set of settings.

    Args:
        directory: Folder of the prompts, perhaps not there yet.
        identity: Who writes them, and how.

    Raises:
        DataError: The folder holds prompts of another identity.
    """

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.directory = directory
        self._identity = identity
        self._begun = self._read_opening()

    def _read_opening(self) -> Opening | None:
        path = self.directory / _IDENTITY
        if not path.exists():
            return None
        try:
            described = json.loads(read_text(path))
            opening = Opening(**described["opening"] | {"ids": tuple(described["opening"]["ids"])})
            same = described["identity"] == asdict(self._identity)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged; remove {self.directory}, and its prompts are written again") from error
        if not same:
            raise DataError(
                f"{self.directory} holds prompts of another target, chat template or --self-... setting; move it away"
            )
        return opening

    def opening(self, found: Opening) -> Opening:
        """The opening that was continued so far: a template may write today's date into it."""
        return self._begun or found

    def begin(self, opening: Opening) -> None:
        """Writes down who writes the prompts, and what is continued."""
        if self._begun is None:
            self._begun = opening
            content = {"identity": asdict(self._identity), "opening": asdict(opening)}
            atomic.write_text(self.directory / _IDENTITY, json.dumps(content, indent=1) + "\n")

    def shard(self, number: int) -> list[Draw] | None:
        """Draws of one shard, in order; None where it is missing.

        Raises:
            DataError: It is damaged.
        """
        path = self.directory / _SHARD.format(number)
        if not path.exists():
            return None
        try:
            draws = [_draw(row) for _, row in read_jsonl(path)]
            if len(draws) != DRAWS_PER_SHARD:
                raise DataError(f"it holds {len(draws)} draws")
            return draws
        except (DataError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged; remove it, and it is written again") from error

    def write_shard(self, number: int, draws: Sequence[Draw]) -> None:
        """Keeps the draws of one shard."""
        _write_rows(self.directory / _SHARD.format(number), [asdict(draw) for draw in draws])

    def file(self, source: SelfSource) -> Path:
        """The prompts file of `self:N:half`."""
        return self.directory / f"{source.half}-{source.count}.jsonl"

    def finish(self, source: SelfSource, found: SortedDraws) -> None:
        """Writes the prompts file, and beside it what was counted."""
        system = [] if self._identity.system is None else [{"role": "system", "content": self._identity.system}]
        rows = [
            {
                "id": f"self-{draw.number}",
                **(
                    {"messages": [*system, {"role": "user", "content": draw.text}]} if system else {"prompt": draw.text}
                ),
                "category": "self",
            }
            for draw in found.prompts[source.half]
        ]
        path = self.file(source)
        atomic.write_text(path.with_suffix(".counts.json"), json.dumps(found.counts(), indent=1) + "\n")
        _write_rows(path, rows)

    def remark(self, source: SelfSource) -> str:
        """Where the prompts are, and what was counted; of a finished file."""
        path = self.file(source)
        try:
            counts = json.loads(read_text(path.with_suffix(".counts.json")))
            kept = counts["train"] + counts["heldout"]
            dropped = ", ".join(f"{counts[reason]} {words}" for reason, words in REASONS.items() if counts[reason])
        except (DataError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path.with_suffix('.counts.json')} is damaged or missing; remove {path}, and both are written again"
            ) from error
        return (
            f"prompts that the target wrote: {path}; of {counts['draws']} draws {kept} are usable "
            f"({counts['train']} to train on, {counts['heldout']} held out); dropped: {dropped or 'none'}"
        )


def _draw(row: Mapping[str, object]) -> Draw:
    number, text, ended = row["number"], row["text"], row["ended"]
    if not (isinstance(number, int) and isinstance(text, str) and isinstance(ended, bool)):
        raise TypeError("not a draw")
    return Draw(number, text, ended)


def _write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    atomic.write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
