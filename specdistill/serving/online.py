"""The online hook: a serving loop hands over what its target corrected, and is never held up by it.

Where the target rejects a draft token, it says exactly what the draft should have known. `RejectionLog` takes these
positions from any number of threads, keeps them in bounded memory, and writes them in a thread of its own. When the
disk is full or slow it drops records and counts them; it never raises into the loop that calls it.

Source of the idea: Liu et al. 2023, online speculative decoding (arXiv 2310.07177).
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdistill.errors import DataError
from specdistill.files import atomic, parquet

_RECORD_BYTES = 200
"""Bytes of a record's Python objects without its numbers, roughly."""


@dataclass
class LogCounts:
    """Counts of the records so far; logged = written + dropped + pending."""

    logged: int = 0
    """Records handed over."""
    written: int = 0
    """Records in finished files."""
    dropped: int = 0
    """Records lost: memory was full, a file could not be written, or a record was malformed."""
    errors: int = 0
    """Failures to write a file."""
    last_error: str | None = None
    """The latest failure."""


class RejectionLog:
    """Bounded, thread-safe, never blocking.

    Args:
        directory: Folder for the files `rejections-<process>-<number>.parquet`; it is made if it does not exist.
        max_pending_bytes: Memory for records that are not written yet; beyond it new ones are dropped.
        rows_per_file: Records per file.
        max_files: Files that are kept in the directory; the oldest are removed.
        max_context: Last ids of the context that are kept.
        flush_seconds: A file is written after this time even if it is not full.

    Raises:
        OutputError: The directory can't be made or written, at the start only.
    """

    def __init__(
        self,
        directory: Path | str,
        *,
        max_pending_bytes: int = 64 * 2**20,
        rows_per_file: int = 4096,
        max_files: int = 64,
        max_context: int = 1024,
        flush_seconds: float = 30.0,
    ) -> None:
        # Now and not in the thread, which may write for the first time when the interpreter is ending.
        parquet.warm_up()
        self._directory = Path(directory)
        with atomic.output_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            probe = self._directory / f".write-probe-{id(self)}"
            probe.touch()
            probe.unlink()
        self._limit, self._rows, self._max_files = max_pending_bytes, rows_per_file, max_files
        self._max_context, self._flush_seconds = max_context, flush_seconds
        self._pending: deque[tuple[int, dict[str, Any]]] = deque()
        self._bytes = 0
        self._counts = LogCounts()
        # Held for a few instructions at a time, never while anything is read or written.
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._number = 0
        self._prefix = f"rejections-{time.time_ns():x}"
        self._thread = threading.Thread(target=self._run, name="specdistill-rejections", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def log(
        self,
        context_ids: Sequence[int],
        proposed_id: int,
        corrected_id: int,
        top_ids: Sequence[int],
        top_logits: Sequence[float],
        log_normaliser: float | None = None,
    ) -> bool:
        """Hands over one rejected position; returns at once.

        Args:
            context_ids: Ids before the position, prompt included; a list, array or tensor.
            proposed_id: The draft's token.
            corrected_id: The target's.
            top_ids, top_logits: The target's K likeliest ids and their logits, before temperature. Arrays and tensors
                are kept as they are and read by the writing thread, so don't change them; a GPU tensor costs no
                synchronisation here.
            log_normaliser: Log-sum-exp of all of the target's logits there, where it is at hand: with it the mass of
                the other ids is known, without it the K count as everything.

        Returns:
            Whether the record was taken; False where it was dropped.
        """
        try:
            context = context_ids[-self._max_context :]
            size = _RECORD_BYTES + 8 * len(context) + 16 * len(top_ids)
        except Exception:
            # Whatever was handed over, the loop that did must go on: the record is dropped and counted below.
            size, context = self._limit + 1, ()
        record = {
            "context_ids": context,
            "proposed_id": proposed_id,
            "corrected_id": corrected_id,
            "top_ids": top_ids,
            "top_logits": top_logits,
            "log_normaliser": log_normaliser,
            "time": time.time(),
        }
        with self._lock:
            self._counts.logged += 1
            if self._closed or self._bytes + size > self._limit:
                self._counts.dropped += 1
                return False
            self._bytes += size
            self._pending.append((size, record))
            full = len(self._pending) >= self._rows
        if full:
            self._wake.set()
        return True

    @property
    def counts(self) -> LogCounts:
        """A copy of the counters."""
        with self._lock:
            return LogCounts(**vars(self._counts))

    @property
    def pending_bytes(self) -> int:
        """Memory of records that are not written yet, roughly."""
        with self._lock:
            return self._bytes

    def close(self, timeout: float = 10.0) -> None:
        """Writes what is pending, for at most `timeout` seconds; later records are dropped."""
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)
        atexit.unregister(self.close)

    def __enter__(self) -> RejectionLog:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._flush_seconds)
            self._wake.clear()
            while self._write_some():
                pass
            with self._lock:
                if self._closed and not self._pending:
                    return

    def _write_some(self) -> bool:
        """Writes one file; returns whether there may be another."""
        with self._lock:
            taken = [self._pending.popleft() for _ in range(min(self._rows, len(self._pending)))]
        if not taken:
            return False
        rows = [row for row in map(_plain, (record for _, record in taken)) if row is not None]
        written = 0
        try:
            if rows:
                self._write(rows)
            written = len(rows)
        except Exception as error:
            # A serving process must live on whatever the disk does.
            with self._lock:
                self._counts.errors += 1
                self._counts.last_error = str(error)
        with self._lock:
            # Only now: what is being written still takes memory.
            self._bytes -= sum(size for size, _ in taken)
            self._counts.written += written
            self._counts.dropped += len(taken) - written
            return len(self._pending) >= self._rows or (self._closed and bool(self._pending))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        parquet.write(self._directory / f"{self._prefix}-{self._number:08d}.parquet", rows)
        self._number += 1
        # Names sort by time: files of earlier processes are the oldest.
        for old in sorted(self._directory.glob("rejections-*.parquet"))[: -self._max_files]:
            old.unlink(missing_ok=True)


def read_rejections(directory: Path | str) -> list[dict[str, Any]]:
    """All records of a directory, oldest file first.

    Raises:
        DataError: There are none, or a file can't be read.
    """
    files = sorted(Path(directory).glob("rejections-*.parquet"))
    if not files:
        raise DataError(f"{directory} holds no rejections; a server writes them with specdistill.serving.online")
    rows: list[dict[str, Any]] = []
    for file in files:
        # The log may have rotated a file away since it was listed.
        with contextlib.suppress(FileNotFoundError):
            rows += parquet.read(file)
    return rows


def _plain(record: dict[str, Any]) -> dict[str, Any] | None:
    """The record in Python numbers; None for a malformed one."""
    try:
        row = {
            "context_ids": [int(value) for value in _listed(record["context_ids"])],
            "proposed_id": int(record["proposed_id"]),
            "corrected_id": int(record["corrected_id"]),
            "top_ids": [int(value) for value in _listed(record["top_ids"])],
            "top_logits": [float(value) for value in _listed(record["top_logits"])],
            "log_normaliser": None if record["log_normaliser"] is None else float(record["log_normaliser"]),
            "time": record["time"],
        }
    except Exception:
        # Callers may hand over anything; a malformed record must not end the writing thread.
        return None
    return row if len(row["top_ids"]) == len(row["top_logits"]) else None


def _listed(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)
