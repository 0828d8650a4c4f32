"""Results that must not be lost: on Ctrl-C and SIGTERM, to names that look like markup, to proxies for other hosts."""

from __future__ import annotations

import dataclasses
import json
import signal
import socket

import pytest
from bench_report import DIFFERENT, category, example_report
from fake_vllm import FakeVllm
from held_process import bench_command, stopped
from tiny_models import make_model
from tiny_runs import prompt_rows, standard_models, write_folder

from specdistill.cli import main
from specdistill.errors import ConfigError, ServerError
from specdistill.evaluation.summaries import TrainSummary
from specdistill.report.distill import training_table
from specdistill.report.html import html_report
from specdistill.report.progress import TerminalProgress
from specdistill.report.terminal import bench_tables
from specdistill.servers import proxies
from specdistill.servers.client import ModelServer

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models and forty prompts."""
    return write_folder(tmp_path_factory.mktemp("interrupts"), standard_models(), prompt_rows(40))


# ---- names that look like markup


def test_a_path_that_looks_like_markup_does_not_end_a_finished_run(folder, tmp_path, monkeypatch, capsys):
    """`[/i]` in --output was a MarkupError after the training; `:smile:` became a face."""
    monkeypatch.setenv("COLUMNS", "200")
    output = tmp_path / "out[" / "i]:smile:"
    command = ["train-draft", "--target", str(folder / "target"), "--draft", str(folder / "draft"), "--steps", "2"]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--output", str(output), "--max-new-tokens", "4"]
    assert main([*command, "--eval-every", "2", "--heldout-prompts", "2", "--rollouts-per-prompt", "1"]) == 0
    assert f"draft: {output} (step 2 of 2 kept: best held-out alpha" in capsys.readouterr().out


def test_names_and_ids_are_printed_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    name = "[/i] [bold]x :smile: $x_$"
    report = example_report()
    report = dataclasses.replace(
        report,
        target=dataclasses.replace(report.target, name=name),
        acceptance=dataclasses.replace(report.acceptance, by_category={name: category(), "other": category()}),
        lossless=dataclasses.replace(
            report.lossless, greedy_identical=False, differences=[dataclasses.replace(DIFFERENT, prompt=name)]
        ),
    )
    bench_tables(report)
    shown = capsys.readouterr().out
    assert f"target {name} (" in shown and f"1 of {report.lossless.prompts_compared} prompts: {name} at token" in shown
    assert sum(name in line for line in shown.splitlines()) == 3
    # matplotlib takes what is between two dollars for a formula, and refuses this one.
    assert "[/i] [bold]x :smile: $x_$" in html_report(report)
    scores = {"greedy": 0.5}
    summary = TrainSummary(
        output=name, steps=1, kept_step=1, best_step=1, keep="best", watched="alpha (greedy)",
        why="best held-out alpha", interrupted=False, learning_rate=1.0, heldout_prompts=1, training_prompts=1,
        processes=1, measure="alpha", before=scores, after=scores,
        gain={"greedy": report.acceptance.acceptance_rate},
    )  # fmt: skip
    training_table(summary)
    assert f"draft: {name} (step 1 of 1 kept: best held-out alpha)" in capsys.readouterr().out


def test_progress_prints_names_as_they_are(capsys):
    progress = TerminalProgress()
    progress.say("[/i] :smile:")
    with progress.task("scoring [/i]", 1, "answers") as task:
        task.note("[/b]")
        task.advance()
    assert capsys.readouterr().err.splitlines() == ["[/i] :smile:", "scoring [/i]: 1/1 answers  [/b]"]


# ---- proxies


@pytest.fixture
def dead_proxy(monkeypatch):
    """HTTP_PROXY with a password, at a port where nobody listens."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{port}")
    return f"http://127.0.0.1:{port}"


def test_no_proxy_comes_between_us_and_a_server_on_this_machine(dead_proxy):
    """HTTP_PROXY=... made `bench --url http://127.0.0.1:8000` wait ten minutes for the proxy."""
    with FakeVllm(make_model(layers=1)) as server:
        for host in ("127.0.0.1", "localhost", "0.0.0.0"):
            client = ModelServer(server.url.replace("127.0.0.1", host), patience=0.0)
            assert client.model == "the-target"
            client.close()


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:8000/v1", True),
        ("http://127.8.8.8", True),
        ("http://LOCALHOST:1", True),
        ("http://api.localhost", True),
        ("http://[::1]:8000", True),
        ("http://[::ffff:127.0.0.1]:8000", True),
        ("http://0.0.0.0:8000", True),
        ("http://10.0.0.1:8000", False),
        ("http://localhost.example.org", False),
        ("http://127.0.0.1.example.org", False),
    ],
)
def test_which_addresses_are_this_machine(url, local, dead_proxy):
    assert proxies.is_loopback(url) == local
    assert (proxies.proxy_of(url) is None) == local


def test_a_proxy_that_fails_is_named_without_its_password(dead_proxy, monkeypatch):
    with pytest.raises(ServerError) as error:
        ModelServer("http://gpu-box.example:8000", patience=0.0)
    text = str(error.value)
    assert f"through the proxy {dead_proxy}" in text and "NO_PROXY=gpu-box.example" in text and "secret" not in text
    monkeypatch.setenv("no_proxy", "gpu-box.example")
    assert proxies.proxy_of("http://gpu-box.example:8000") is None


def test_a_refusal_by_the_proxy_names_it(monkeypatch, dead_proxy):
    with FakeVllm(make_model(layers=1), fault=lambda path, number: (403, {"error": "not allowed"})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        with pytest.raises(ServerError, match=f"through the proxy {proxy.url} .*refused: HTTP 403"):
            ModelServer("http://gpu-box.example:8000", patience=0.0)


def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch, dead_proxy):
    monkeypatch.setenv("http_proxy", "magic://127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"through the proxy magic://127\.0\.0\.1:1"):
        ModelServer("http://gpu-box.example:8000", patience=0.0)


# ---- Ctrl-C and SIGTERM, with real processes

STAGES = {
    "answers": ("specdistill.decoding.answers.generate_plain", 1, (8, 10), "unknown"),
    "scoring": ("specdistill.evaluation.acceptance._score_batch", 1, (8, 10), "unknown"),
    "costs": ("specdistill.evaluation.measure.measure_costs", 0, (10, 10), "unknown"),
    # The first call is the warm-up's.
    "timing": ("specdistill.evaluation.latency.generate_plain", 4, (3, 6), None),
}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_in_a_bench_reports_what_was_measured(folder, tmp_path, stage):
    """cyclopts ended the process without a word, and nothing was written."""
    place, calls, (done, asked), verdict = STAGES[stage]
    code, output, errors = stopped(tmp_path, bench_command(folder, tmp_path, "--latency-prompts", "6"), place, calls)
    assert code == 130, errors
    assert errors.splitlines()[-1] == "specdistill: interrupted" and "making the report" in errors
    assert f"INCOMPLETE: {done} of {asked} prompts; interrupted" in output
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["partial"]["prompts_done"], report["partial"]["prompts_asked"]) == (done, asked)
    assert 0 <= report["acceptance"]["alpha"]["greedy"]["mean"] <= 1 and report["acceptance"]["tokens_scored"] > 0
    assert "Incomplete" in (tmp_path / "r.html").read_text()
    if verdict:
        assert report["economics"]["verdict"] == verdict and report["latency"]["speedup"]["mean"] is None
        assert report["setup"]["latency_prompts"] == 0 and report["setup"]["prompts"] == done
    else:
        assert report["latency"]["speedup"]["mean"] > 0 and report["setup"]["latency_prompts"] == done


def test_sigterm_in_a_bench_reports_as_ctrl_c_does(folder, tmp_path):
    place, calls, (done, asked), _ = STAGES["timing"]
    command = bench_command(folder, tmp_path, "--latency-prompts", "6")
    code, output, errors = stopped(tmp_path, command, place, calls, signal.SIGTERM)
    assert code == 143 and errors.splitlines()[-1] == "specdistill: interrupted by SIGTERM"
    assert f"INCOMPLETE: {done} of {asked}" in output and (tmp_path / "r.json").exists()


def test_ctrl_c_in_a_bench_of_an_engine_reports_what_was_measured(folder, tmp_path):
    command = bench_command(folder, tmp_path, "--engine", "transformers", "--num-draft-tokens", "2")
    code, output, errors = stopped(tmp_path, command, "specdistill.serving.engine_timing.EngineRun", 3)
    assert code == 130 and errors.splitlines()[-1] == "specdistill: interrupted"
    assert "INCOMPLETE: 3 of 10 prompts" in output
    assert json.loads((tmp_path / "r.json").read_text())["partial"]["prompts_done"] == 3


def test_ctrl_c_before_anything_was_measured_is_one_line(folder, tmp_path):
    code, output, errors = stopped(tmp_path, bench_command(folder, tmp_path), "specdistill.evaluation.measure._load", 0)
    assert (code, output, errors) == (130, "", "specdistill: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [], "no lock, no half report"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_generate_says_what_is_there_and_the_same_command_goes_on(folder, tmp_path, sent, capsys):
    output = tmp_path / "answers"
    command = ["generate", "--target", str(folder / "target"), "--prompts", str(folder / "prompts.jsonl")]
    command += ["--output", str(output), "--max-new-tokens", "4", "--shard-size", "10"]
    code, _, errors = stopped(tmp_path, command, "specdistill.distill.answers.shards._answer", 3, sent)
    assert code == 128 + sent
    assert f"interrupted; in {output}: 3 finished files of answers; the same command goes on" in errors
    assert sorted(path.name for path in output.iterdir()) == [
        "specdistill.yaml", *(f"train-{number:05d}.parquet" for number in range(3))
    ]  # fmt: skip
    assert main(command) == 0 and "160" in capsys.readouterr().out
    labels = ["annotate", "--target", str(folder / "target"), "--rollouts", str(output), "--top-k", "4"]
    labels += ["--output", str(tmp_path / "labels")]
    code, _, errors = stopped(tmp_path, labels, "specdistill.distill.answers.label_writer.label_rows", 2, sent)
    assert code == 128 + sent and "2 finished files of labels; the same command goes on" in errors
    assert main(labels) == 0


def test_ctrl_c_before_the_first_file_says_that_nothing_is_kept(folder, tmp_path):
    output, labels = tmp_path / "answers", tmp_path / "labels"
    command = ["generate", "--target", str(folder / "target"), "--prompts", str(folder / "prompts.jsonl")]
    command += ["--output", str(output), "--max-new-tokens", "4"]
    code, _, errors = stopped(tmp_path, command, "specdistill.distill.answers.shards._answer", 0)
    assert code == 130
    assert (
        f"interrupted; in {output}: no file of answers was finished, and only finished ones are kept; the same"
        in errors
    )
    assert "command starts again (a file holds 64 answers; a lower --shard-size loses less)" in errors
    # What is advised is taken, though the directory is there.
    assert main([*command, "--shard-size", "10"]) == 0
    command = ["annotate", "--target", str(folder / "target"), "--rollouts", str(output), "--output", str(labels)]
    code, _, errors = stopped(tmp_path, command, "specdistill.distill.answers.label_writer.label_rows", 0)
    assert code == 130 and "no file of labels was finished" in errors
    assert "starts again (a file holds the answers of one file of --rollouts (generate --shard-size))" in errors


@pytest.mark.parametrize("name", ["init-draft", "export"])
def test_ctrl_c_while_a_draft_is_saved_leaves_no_half_draft(folder, tmp_path, name):
    output = tmp_path / "cut"
    command = [name, "--target", str(folder / "target"), "--output", str(output)]
    command += {
        "init-draft": ["--layers", "1", "--calibration-tokens", "4", "--choose", "even"],
        "export": ["--draft", str(folder / "draft"), "--format", "vllm"],
    }[name]
    command += ["--prompts", str(folder / "prompts.jsonl")] if name == "init-draft" else []
    code, _, errors = stopped(tmp_path, command, "specdistill.models.checkpoint._publish", 2)
    assert code == 130 and errors.splitlines()[-1] == "specdistill: interrupted"
    assert not output.exists()
    assert main(command) == 0
