"""Online distillation: train on the tokens that a server's target corrects, as they come in.

The records are those of `specdistill.serving.online.RejectionLog`: a context, the token that the target put there
instead of the draft's, and the target's likeliest ids. Each is a sequence of one answer token with soft labels. For a
head, which learns whole rounds, the tokens before it belong to the answer too, and the target in memory labels them. A
step takes the records that no step has seen yet, newest first, and fills up with older ones, so that a quiet hour does
not make the draft forget.

Source: Liu et al. 2023, online speculative decoding (arXiv 2310.07177).
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from specdistill.data.batch import Example, Provenance
from specdistill.distill.sequences.measurements import Measurements
from specdistill.errors import DataError
from specdistill.files import parquet
from specdistill_kernels import SoftLabels

_POLL_SECONDS = 1.0


class Online:
    """A source that follows a directory of rejections.

    Args:
        directory: Directory of the log.
        vocab_size: Size of the target's vocabulary.
        max_context: Longer contexts lose their beginning.
        batch_size: Records per step.
        seed: Random seed of the choice among older records.
        wait_seconds: A step that finds no record at all waits this long before the run gives up.
        round_tokens: Tokens before the corrected one in which a head's rounds begin; 0 for other drafts.
        replay: Records kept to fill up with.
        say: Where waiting announces itself.
    """

    def __init__(
        self,
        directory: Path,
        *,
        vocab_size: int,
        max_context: int,
        batch_size: int,
        seed: int,
        wait_seconds: float,
        round_tokens: int = 0,
        replay: int = 4096,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._directory, self._vocab_size, self._max_context = directory, vocab_size, max_context
        self._batch_size, self._wait_seconds, self._say = batch_size, wait_seconds, say
        self._round_tokens = round_tokens
        self._random = random.Random(seed)
        self._read: set[str] = set()
        self._fresh: list[Example] = []
        self._older: deque[Example] = deque(maxlen=replay)
        self._seen = 0

    def next_batch(self, step: int) -> list[Example]:
        """Raises DataError where no record came in time."""
        self._refresh()
        if not self._fresh and not self._older:
            self._wait()
        taken = [self._fresh.pop() for _ in range(min(self._batch_size, len(self._fresh)))]
        self._seen += len(taken)
        missing = min(self._batch_size - len(taken), len(self._older))
        batch = [*taken, *self._random.sample(list(self._older), missing)]
        self._older.extend(taken)
        return batch

    def measurements(self, *, reset: bool = False) -> Measurements:
        """online_records: how many different ones were trained on; online_waiting: how many lie unread."""
        return {"online_records": self._seen, "online_waiting": len(self._fresh)}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a resumed run reads the log again, which has gone on meanwhile."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _refresh(self) -> None:
        for file in sorted(self._directory.glob("rejections-*.parquet")):
            if file.name in self._read:
                continue
            try:
                rows = parquet.read(file)
            except FileNotFoundError:
                # The log has rotated it away since it was listed.
                continue
            self._read.add(file.name)
            found = [self._sequence(row, file) for row in rows]
            # A head's round reads one token after the target's first states at least.
            self._fresh += [one for one in found if not self._round_tokens or len(one.answer_ids) > 1]

    def _wait(self) -> None:
        self._say(f"waiting for rejections in {self._directory}")
        deadline = time.monotonic() + self._wait_seconds
        while not self._fresh:
            if time.monotonic() > deadline:
                raise DataError(
                    f"no rejections came to {self._directory} within {self._wait_seconds:g} s; does the server write "
                    "its RejectionLog there?"
                )
            time.sleep(min(_POLL_SECONDS, max(0.01, deadline - time.monotonic())))
            self._refresh()

    def _sequence(self, row: dict[str, Any], file: Path) -> Example:
        ids, logits = torch.tensor(row["top_ids"]), torch.tensor(row["top_logits"], dtype=torch.float32)
        largest = max([*row["context_ids"], *row["top_ids"], row["corrected_id"]])
        if largest >= self._vocab_size or len(ids) == 0 or not row["context_ids"]:
            raise DataError(
                f"{file} holds a record that does not fit this target (id {largest}); another server's log?"
            )
        context = row["context_ids"][-self._max_context :]
        if self._round_tokens:
            split = max(1, len(context) - self._round_tokens)
            answer = (*context[split:], row["corrected_id"])
            return Example("online", tuple(context[:split]), answer, (int(Provenance.TARGET),) * len(answer))
        normaliser = row.get("log_normaliser")
        log_probs = logits.log_softmax(0) if normaliser is None else (logits - normaliser).clamp(max=0)
        return Example(
            "online",
            tuple(context),
            (row["corrected_id"],),
            (int(Provenance.TARGET),),
            soft_labels=SoftLabels(ids[None], log_probs[None]),
        )
