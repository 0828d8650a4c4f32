"""The online hook: nothing that a disk does reaches the serving loop, memory is bounded, nothing is lost uncounted."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from specdistill.errors import DataError, OutputError
from specdistill.files import atomic
from specdistill.serving.online import RejectionLog, read_rejections


def record(number=0, context=4):
    return [number] * context, 5, 6, [6, 7, 8], [3.0, 2.0, 1.0]


def test_what_is_logged_is_read_back(tmp_path):
    with RejectionLog(tmp_path, max_context=3) as log:
        assert log.log([1, 2, 3, 4], 5, 6, [6, 7], [2.5, 1.0], log_normaliser=3.25)
        assert log.log(torch.tensor([9, 8]), torch.tensor(5), np.int64(6), torch.tensor([6]), np.array([0.5]))
    first, second = read_rejections(tmp_path)
    assert first["context_ids"] == [2, 3, 4] and first["top_ids"] == [6, 7] and first["top_logits"] == [2.5, 1.0]
    assert first["log_normaliser"] == 3.25 and second["log_normaliser"] is None
    assert second["context_ids"] == [9, 8] and (second["proposed_id"], second["corrected_id"]) == (5, 6)
    assert log.counts.logged == log.counts.written == 2


def test_eight_threads_lose_nothing(tmp_path):
    log = RejectionLog(tmp_path, rows_per_file=100, flush_seconds=0.05)

    def serve(thread):
        for number in range(2000):
            log.log(*record(thread * 2000 + number))

    threads = [threading.Thread(target=serve, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    seen = [row["context_ids"][0] for row in read_rejections(tmp_path)]
    counts = log.counts
    assert counts.logged == counts.written == 16000 and counts.dropped == 0
    assert len(list(tmp_path.iterdir())) == 64, "older files were rotated away"
    assert len(seen) == len(set(seen)) and 64 < len(seen) <= 64 * 100


def test_a_full_disk_is_counted_and_the_loop_goes_on(tmp_path, monkeypatch):
    original = atomic.write_with
    full = True

    def write(path, action):
        if full:
            raise OutputError(f"disk full while writing {path}")
        original(path, action)

    monkeypatch.setattr(atomic, "write_with", write)
    log = RejectionLog(tmp_path, rows_per_file=10, flush_seconds=0.01)
    slowest = 0.0
    for number in range(500):
        start = time.perf_counter()
        assert log.log(*record(number))
        slowest = max(slowest, time.perf_counter() - start)
    deadline = time.monotonic() + 20
    while log.counts.dropped < 500 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.counts.dropped == 500 and log.counts.errors > 0 and "disk full" in log.counts.last_error
    assert log.pending_bytes == 0 and slowest < 1.0
    full = False
    log.log(*record(7))
    log.close()
    assert [row["context_ids"][0] for row in read_rejections(tmp_path)] == [7]


def test_a_disk_that_hangs_bounds_memory_and_blocks_nobody(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(atomic, "write_with", lambda path, action: release.wait(30))
    log = RejectionLog(tmp_path, rows_per_file=10, max_pending_bytes=50_000, flush_seconds=0.01)
    start = time.perf_counter()
    taken = sum(log.log(*record(number)) for number in range(5000))
    assert time.perf_counter() - start < 5
    assert log.pending_bytes <= 50_000 and 0 < taken < 5000
    assert log.counts.dropped == 5000 - taken
    release.set()
    log.close()


@pytest.mark.parametrize(
    "broken",
    [
        (None, 5, 6, [6], [1.0]),
        ([1], "x", 6, [6], [1.0]),
        ([1], 5, 6, [6, 7], [1.0]),
        ([1], 5, 6, [6], ["y"]),
    ],
)
def test_a_record_that_makes_no_sense_is_dropped_not_raised(tmp_path, broken):
    with RejectionLog(tmp_path) as log:
        log.log(*broken)
        log.log(*record(1))
    assert len(read_rejections(tmp_path)) == 1 and log.counts.dropped == 1


def test_after_close_records_are_dropped(tmp_path):
    log = RejectionLog(tmp_path)
    log.close()
    assert not log.log(*record()) and log.counts.dropped == 1


def test_a_directory_that_can_not_be_written_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        RejectionLog(tmp_path / "file" / "log")
    with pytest.raises(DataError, match="holds no rejections"):
        read_rejections(tmp_path)


def test_pending_records_are_written_when_the_process_ends(tmp_path):
    code = (
        "import sys; from specdistill.serving.online import RejectionLog\n"
        "RejectionLog(sys.argv[1]).log([1, 2], 3, 4, [4], [1.0])\n"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(read_rejections(tmp_path)) == 1
