"""`make bench-quick`: new measurements are compared with the committed results, and those that disagree are counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
MEASURED = ("decoder_peers.json", "loss_op.json")


@pytest.fixture
def run_all(monkeypatch, tmp_path):
    """The script, on a copy of the results in which the quick ones are the committed ones."""
    monkeypatch.syspath_prepend(str(ROOT))
    # The script puts the repository on the path; other tests must not find it there.
    monkeypatch.setattr(sys, "path", list(sys.path))
    from benchmarks import run_all
    from benchmarks.support import results

    for name in MEASURED:
        text = (RESULTS / name).read_text()
        (tmp_path / name).write_text(text)
        (tmp_path / f"quick_{name}").write_text(text)
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    yield run_all
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


def test_equal_results_agree(run_all, capsys):
    assert run_all.compare_results() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20 and all(line.startswith("agrees") for line in lines)
    assert any("transformers" in line for line in lines) and any("liger" in line for line in lines)
    assert any("batch of 8" in line for line in lines)


def test_estimates_that_differ_are_counted(run_all, tmp_path, capsys):
    quick = json.loads((tmp_path / "quick_loss_op.json").read_text())
    quick["cases"][0]["over_specdistill"]["trl"] = {"mean": 99.0, "ci95": [98.0, 100.0]}
    near = quick["cases"][2]["over_specdistill"]["trl"]
    near |= {"mean": near["mean"] * 1.04, "ci95": [near["ci95"][1] * 1.01, near["ci95"][1] * 1.07]}
    quick["cases"][1]["tokens"] = 513
    quick["cpu"] = "another"
    (tmp_path / "quick_loss_op.json").write_text(json.dumps(quick))
    assert run_all.compare_results() == 1
    out = capsys.readouterr().out
    assert out.count("DIFFERS") == 1 and "trl" in next(line for line in out.splitlines() if "DIFFERS" in line)
    assert out.count("close  ") == 1
    assert "nothing committed to compare with" in out and "this CPU has another" in out
