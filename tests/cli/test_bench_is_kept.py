"""Results of a bench are printed where they can't be written, and kept where the process is killed."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from pathlib import Path

import pytest
from held_process import bench_command, stopped
from tiny_runs import prompt_rows, standard_models, write_folder

from specdistill.cli import main
from specdistill.evaluation import parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and forty prompts."""
    return write_folder(tmp_path_factory.mktemp("kept"), standard_models(), prompt_rows(40))


def full_disk_for(monkeypatch, *endings):
    """Files whose names hold one of these words can't be written."""
    original = Path.write_bytes

    def write(path, content):
        if any(ending in path.name for ending in endings):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return original(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)


@pytest.mark.parametrize("full", [("r.json", "r.html"), ("r.html",), ("r.json",)])
def test_a_full_disk_costs_the_file_but_no_result(folder, tmp_path, monkeypatch, capsys, full):
    full_disk_for(monkeypatch, *full)
    assert main(bench_command(folder, tmp_path)) == 2
    printed = capsys.readouterr()
    assert "speed-up, measured:" in printed.out and "verdict: " in printed.out
    last = printed.err.splitlines()[-1]
    assert last.startswith("specdistill: ")
    for name in ("r.json", "r.html"):
        message = f"disk full while writing {tmp_path / name}"
        assert (message in last) == (name in full) == (not (tmp_path / name).exists())
        # Said once while the bench went on, and at its end.
        assert printed.err.count(message) == (2 if name in full else 0)
        assert (f"{name.partition('.')[2]}: {tmp_path / name}" in printed.out) == (name not in full)


def test_a_folder_that_is_gone_costs_no_result(folder, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    results.mkdir()
    original = parts.Parts.finished

    def finished(self):
        shutil.rmtree(results)
        results.write_text("a file now")
        return original(self)

    monkeypatch.setattr(parts.Parts, "finished", finished)
    assert main(bench_command(folder, results)) == 2
    printed = capsys.readouterr()
    assert "speed-up, measured:" in printed.out
    assert printed.err.splitlines()[-1].startswith(f"specdistill: can't write {results / 'r.json'}: ")


def killed(tmp_path, folder, place, calls, *more, sent=signal.SIGKILL):
    code, output, _ = stopped(tmp_path, bench_command(folder, tmp_path, *more), place, calls, sent)
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[sent]
    return json.loads((tmp_path / "r.json").read_text()), (tmp_path / "r.html").read_text(), output


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_measured_costs_and_the_page_outlive_the_end_of_a_bench(folder, tmp_path, sent):
    """The first call of the timed run is the warm-up's."""
    report, page, output = killed(tmp_path, folder, "specdistill.evaluation.latency.generate_plain", 1, sent=sent)
    economics = report["economics"]
    assert economics["cost_ratio"] > 0 and set(economics["verify_cost"]) >= {"1", "2", "3"}
    assert economics["predicted_speedup"]["2"] > 0 and report["latency"]["speedup"]["mean"] is None
    assert report["baselines"]["ngram"]["mean_acceptance_length"]["mean"] >= 1
    why = {
        signal.SIGKILL: "since the bench was still running when this was written",
        signal.SIGINT: "since the bench was interrupted before that",
    }[sent]
    assert economics["verdict"] == "cannot pay" or why in economics["why"]
    assert "Incomplete:" in page and "Lossless: not checked, for the bench ended before." in page
    if sent == signal.SIGINT:
        assert "lossless: not checked, for the bench ended before" in output and "costs in target steps" in output


def test_a_failed_timing_is_not_called_an_interruption(folder, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **named):
        raise ZeroDivisionError("by hand")

    monkeypatch.setattr("specdistill.evaluation.timed_run.latency.time_ways", fail)
    assert main(bench_command(folder, tmp_path)) == 2
    report = json.loads((tmp_path / "r.json").read_text())
    printed = capsys.readouterr().out
    assert report["economics"]["verdict"] == "cannot pay" or "since timing failed" in report["economics"]["why"]
    assert "interrupted" not in printed and "--temperature 0 compares" not in printed
    assert "lossless: not checked, for the bench ended before" in printed


def test_timed_batches_are_kept_while_the_timing_goes_on(folder, tmp_path, monkeypatch):
    kept, original = [], parts.Parts.keep

    def keep(self, name, **more):
        original(self, name, **more)
        kept.append((name, self.timed.prompts if self.timed else 0, more))

    monkeypatch.setattr(parts.Parts, "keep", keep)
    monkeypatch.setattr(parts, "_SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(parts, "_MOST_TIME", float("inf"))
    files = []
    monkeypatch.setattr("specdistill.report.bench_files.html_report", lambda report: files.append(report) or "")
    assert main(bench_command(folder, tmp_path, "--batch-size", "2")) == 0
    middle = [done for name, done, more in kept if name == "timing" and more]
    assert middle == [2, 4, 6, 8, 10]
    halfway = next(report for report in files if report.latency.is_timed and report.setup.latency_prompts == 4)
    assert halfway.partial.prompts_done == 4 and halfway.partial.prompts_asked == 10
    assert "written, in the middle of timing;" in halfway.partial.why
    assert sum(way.speedup is not None for way in halfway.baselines.values()) == 2


def test_few_batches_are_kept_at_most(folder, tmp_path, monkeypatch):
    """Keeping takes time: by default a tiny run has none in its middle."""
    kept, original = [], parts.Parts.keep
    monkeypatch.setattr(parts.Parts, "keep", lambda self, *part, **more: kept.append(more) or original(self, *part))
    assert main(bench_command(folder, tmp_path)) == 0
    assert {"is_done": False} not in kept
