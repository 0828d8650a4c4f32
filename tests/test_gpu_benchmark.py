"""`make gpu`: every part runs on a CPU with tiny models, is skipped once measured, and keeps its rows when cut off."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/gpu/run.py"
PARTS = ("checks", "decoder", "training", "loss", "prefill", "operations", "trl")


def walk(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--dry", "--output", str(output), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder of a whole dry run, and what it printed."""
    folder = tmp_path_factory.mktemp("gpu")
    return folder, walk(folder)


@pytest.fixture
def record_module(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.gpu import record

    yield record
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def load(folder: Path, part: str):
    return json.loads((folder / f"gpu_{part}.json").read_text())


def test_every_part_runs_to_its_end(walked):
    folder, done = walked
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert {path.name for path in folder.iterdir()} == {f"gpu_{part}.json" for part in PARTS}
    for part in PARTS:
        found = load(folder, part)
        assert found["complete"] and found["failures"] == 0 and found["device"] == "cpu", part
        assert found["torch"] and found["source"]


def test_rows_hold_what_they_measure(walked):
    folder, _ = walked
    checks = load(folder, "checks")
    assert {row["family"] for row in checks["greedy"]} == {"llama", "gemma2"}
    assert all(row["different"] == 0 for row in checks["greedy"] if row["dtype"] == "float32")
    assert {row["rule"] for row in checks["distributions"]} == {"sampled", "block", "argmax_draft"}
    assert checks["tests"][0]["passed"] == checks["tests"][0]["tests"] > 0
    assert {row["command"].split()[0] for row in checks["commands"]} == {"generate", "annotate", "train-draft", "bench"}
    for row in load(folder, "decoder")["rows"]:
        speculative, costs = row["speculative"], row["costs"]
        assert costs["cost_ratio"] == pytest.approx(costs["draft_step_ms"] / costs["target_step_ms"])
        assert set(costs["verify_cost"]) == {"1", "2", "3", "4", "5"}
        assert speculative["round_in_plain_steps"] == pytest.approx(speculative["round_ms"] / row["plain"]["step_ms"])
    for row in load(folder, "decoder")["captured"]:
        assert set(row["captured_over_eager"]) == {"plain", "round", "draft_step"}
        assert row["steps"]["draft"]["graphs"] == 0 and row["steps"]["draft"]["reason"] == "dry"
    # A model that drafts for itself is never rejected: four tokens and the bonus.
    assert {row["speculative"]["tokens_per_round"] for row in load(folder, "decoder")["same_model"]} == {5}
    for part, contestants in (("training", {"specdistill"}), ("trl", {"trl-distillation", "trl-gkd"})):
        rows = load(folder, part)["rows"]
        assert {row["contestant"] for row in rows} == contestants
        # One step of eight answers; some may end early.
        assert all(0 < row["each"][-1]["tokens"] <= 8 * 8 for row in rows)
    assert all(row["same_first_tokens"] == row["batch"] for row in load(folder, "prefill")["rows"])


def test_what_is_measured_is_skipped_and_what_failed_or_changed_is_not(walked, record_module):
    folder, _ = walked
    path = folder / "gpu_prefill.json"
    before = path.read_text()
    assert "prefill: measured already" in walk(folder, "--parts", "prefill").stdout and path.read_text() == before
    assert record_module.is_done(path, dry=True)
    for change in ({"failures": 1}, {"source": "of another commit"}, {"device": "another card"}, {"complete": False}):
        path.write_text(json.dumps(json.loads(before) | change))
        assert not record_module.is_done(path, dry=True), change
    path.write_text(before[:-9])
    assert not record_module.is_done(path, dry=True), "half a file"


def test_a_row_that_fails_is_recorded_and_the_next_goes_on(tmp_path, record_module):
    record = record_module.Record(tmp_path / "part.json", "cpu")
    record.attempt("rows", {"batch": 1}, lambda: {"value": 1 / 0})
    assert json.loads((tmp_path / "part.json").read_text())["complete"] is False
    record.attempt("rows", {"batch": 2}, lambda: {"value": 2})
    record.finish()
    found = json.loads((tmp_path / "part.json").read_text())
    assert "ZeroDivisionError" in found["rows"][0]["error"] and found["rows"][1]["value"] == 2
    assert found["complete"] and found["failures"] == 1


def test_a_part_that_is_cut_off_says_so(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]\n"
        "from pathlib import Path; from benchmarks.gpu import run\n"
        "assert not run.start_part('checks', 1, Path(sys.argv[2]), True, None)"
    )
    subprocess.run([sys.executable, "-c", code, str(ROOT), str(tmp_path)], check=True)
    found = json.loads((tmp_path / "gpu_checks.json").read_text())
    assert found["error"] == "stopped after 1 seconds" and not found["complete"] and found["failures"] >= 1


@pytest.mark.parametrize("words", [["decoding"], ["decoder=soon"]])
def test_unknown_parts_and_limits_are_refused(words, tmp_path):
    done = walk(tmp_path, "--parts", *words)
    assert done.returncode == 1 and "choose from checks, decoder" in done.stderr
