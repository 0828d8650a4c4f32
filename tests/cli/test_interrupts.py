"""Results that must not be lost: on Ctrl-C and SIGTERM, by names that look like markup, by proxies of the environment."""

from __future__ import annotations

import dataclasses
import socket

import pytest
from bench_report import DIFFERENT, category, example_report
from fake_vllm import FakeVllm
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
    assert f"draft: {output} (best step" in capsys.readouterr().out


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
        output=name, steps=1, best_step=1, interrupted=False, learning_rate=1.0, heldout_prompts=1, training_prompts=1,
        processes=1, measure="alpha", before=scores, after=scores,
        gain={"greedy": report.acceptance.acceptance_rate},
    )  # fmt: skip
    training_table(summary)
    assert f"draft: {name} (best" in capsys.readouterr().out


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
