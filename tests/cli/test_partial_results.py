"""A bench that ends early leaves the JSON and the page of what was measured, and says why and where it ended."""

from __future__ import annotations

import importlib
import json
import signal

import pytest
import torch
from held_process import bench_command, stopped
from tiny_runs import prompt_rows, standard_models, write_folder

from specdistill.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and forty prompts."""
    return write_folder(tmp_path_factory.mktemp("partial"), standard_models(), prompt_rows(40))


def failing(monkeypatch, place, calls, error):
    """Lets the n-th call of a function fail, and all later ones."""
    module, _, name = place.rpartition(".")
    owner = importlib.import_module(module)
    original, count = getattr(owner, name), iter(range(10**6))

    def fail(*arguments, **named):
        if next(count) >= calls:
            raise error
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, fail)


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


PARTS = {
    # Place, calls that succeed, error, prompts done of asked, part, the reason's words.
    "answers": ("specdistill.decoding.answers.generate_plain", 1, MemoryError(), (8, 10), "out of memory; lower"),
    "scoring": ("specdistill.evaluation.acceptance._score_batch", 1, out_of_memory(), (8, 10), "out of memory; lower"),
    "costs": ("specdistill.evaluation.measure.measure_costs", 0, MemoryError(), (10, 10), "out of memory; lower"),
    # The first call is the warm-up's.
    "timing": ("specdistill.evaluation.latency.generate_plain", 4, out_of_memory(), (3, 10), "out of memory; lower"),
}


@pytest.mark.parametrize("part", PARTS)
def test_memory_that_ends_leaves_what_was_measured(folder, tmp_path, monkeypatch, capsys, part):
    """After scoring it lost the scores."""
    place, calls, error, (done, asked), words = PARTS[part]
    failing(monkeypatch, place, calls, error)
    assert main(bench_command(folder, tmp_path)) == 2
    printed = capsys.readouterr()
    assert f"INCOMPLETE: {done} of {asked} prompts; {part}: {words} --max-new-tokens" in printed.out
    assert printed.err.splitlines()[-1].startswith(f"specdistill: {part}: {words}")
    report = json.loads((tmp_path / "r.json").read_text())
    partial = report["partial"]
    assert (partial["prompts_done"], partial["prompts_asked"], partial["where"]) == (done, asked, part)
    assert 0 <= report["acceptance"]["alpha"]["greedy"]["mean"] <= 1 and report["setup"]["prompts"] in (done, 10)
    assert words in (tmp_path / "r.html").read_text()
    assert (report["latency"]["speedup"]["mean"] is not None) == (part == "timing")


def test_memory_that_ends_before_two_answers_is_one_line_and_no_file(folder, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, "specdistill.decoding.answers.generate_plain", 0, out_of_memory())
    assert main(bench_command(folder, tmp_path)) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("specdistill: out of memory; lower --max-new-tokens")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_of_any_kind_leaves_what_was_measured(folder, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, "specdistill.evaluation.latency.generate_plain", 5, ZeroDivisionError("by hand"))
    assert main(bench_command(folder, tmp_path)) == 2
    printed = capsys.readouterr()
    assert "timing failed: ZeroDivisionError: by hand; 4 of 10 prompts are kept" in printed.err
    assert json.loads((tmp_path / "r.json").read_text())["setup"]["latency_prompts"] == 4
    # With --debug the traceback leads to the place.
    for name in ("r.json", "r.html"):
        (tmp_path / name).unlink()
    with pytest.raises(Exception, match="by hand") as raised:
        main([*bench_command(folder, tmp_path), "--debug"])
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


OPTIONAL = {
    "samples": ("specdistill.evaluation.measure.make_samples", []),
    "lenience_sweep": (
        "specdistill.evaluation.measure.lenience_rows",
        ["--temperature", "1", "--lenience-sweep", "0.5"],
    ),
    "score": ("specdistill.evaluation.measure.own_scores", ["--scorer", "exact-match"]),
}


@pytest.mark.parametrize("section", OPTIONAL)
def test_an_optional_part_that_fails_is_left_out_and_the_rest_is_measured(
    folder, tmp_path, monkeypatch, capsys, section
):
    place, more = OPTIONAL[section]
    failing(monkeypatch, place, 0, RuntimeError("by hand"))
    assert main([*bench_command(folder, tmp_path), *more]) == 2
    printed = capsys.readouterr()
    assert f"{section} failed: RuntimeError: by hand; the report is without it" in printed.err
    report = json.loads((tmp_path / "r.json").read_text())
    assert section not in report and report["partial"]["where"] == section
    assert report["partial"]["left_out"] == {section: f"{section} failed: RuntimeError: by hand"}
    assert report["latency"]["speedup"]["mean"] > 0 and report["economics"]["verdict"] != "unknown"


@pytest.mark.parametrize(
    ("place", "calls", "error", "part", "done"),
    [
        ("specdistill.serving.engine_timing.EngineRun", 3, out_of_memory(), "timing", 3),
        ("specdistill.serving.engine_timing.EngineRun", 3, RuntimeError("the engine died"), "timing", 3),
        ("specdistill.evaluation.acceptance.score", 0, out_of_memory(), "scoring", 10),
    ],
    ids=["memory", "crash", "scoring"],
)
def test_an_engine_that_fails_leaves_what_was_measured(
    folder, tmp_path, monkeypatch, capsys, place, calls, error, part, done
):
    failing(monkeypatch, place, calls, error)
    command = bench_command(folder, tmp_path, "--engine", "transformers", "--num-draft-tokens", "2")
    assert main(command) == 2
    printed = capsys.readouterr()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["partial"]["where"] == part and report["partial"]["prompts_done"] == done
    assert report["latency"]["speedup"]["mean"] > 0 and report["setup"]["latency_prompts"] == done
    assert ("greedy" in report["acceptance"]["alpha"]) == (part == "timing")
    if part == "scoring":
        assert "the bench ended before the answers were scored" in printed.out


def test_a_kill_leaves_the_json_of_an_engines_timed_run(folder, tmp_path):
    command = bench_command(folder, tmp_path, "--engine", "transformers", "--num-draft-tokens", "2")
    place = "specdistill.evaluation.acceptance.score"
    code, _, _ = stopped(tmp_path, command, place, 0, signal.SIGKILL)
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == -signal.SIGKILL and report["partial"]["where"] == "timing"
    assert report["latency"]["speedup"]["mean"] > 0 and report["acceptance"]["alpha"] == {}


# A part, where the process is held when it is killed, and what the file then has.
KILLS = {
    "scoring": ("specdistill.evaluation.measure.measure_costs", 0, None),
    "costs": ("specdistill.evaluation.measure.beside_draft", 0, None),
    "baselines": ("specdistill.evaluation.latency.generate_plain", 2, None),
    "timing": ("specdistill.evaluation.measure.make_samples", 0, 10),
}


@pytest.mark.parametrize("part", KILLS)
def test_even_a_kill_leaves_the_json_of_the_parts_that_were_done(folder, tmp_path, part):
    place, calls, timed = KILLS[part]
    code, _, _ = stopped(tmp_path, bench_command(folder, tmp_path), place, calls, signal.SIGKILL)
    assert code == -signal.SIGKILL
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["partial"]["where"] == part and f"after {part}" in report["partial"]["why"]
    assert 0 <= report["acceptance"]["alpha"]["greedy"]["mean"] <= 1
    assert (report["latency"]["speedup"]["mean"] is not None) == (timed is not None)
    assert report["setup"]["latency_prompts"] == (timed or 0)


def test_a_whole_bench_is_not_partial(folder, tmp_path):
    assert main(bench_command(folder, tmp_path)) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert "partial" not in report and len(report["samples"]) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.html", "r.json"]
