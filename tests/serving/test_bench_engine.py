"""`bench --engine`: a real engine's counters beside our prediction, and whatever a server does, one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from fake_vllm import FakeVllm
from tiny_models import make_model, make_tokenizer, perturbed, save

from specdistill import BenchConfig, bench, load_model
from specdistill.cli import main
from specdistill.errors import ConfigError, ServerError
from specdistill.serving import speculation
from specdistill.serving.served_engine import ServedEngine
from specdistill.serving.server_process import ServerProcess, free_port
from specdistill.serving.speculation import Speculation

GAMMA = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    save(make_model(layers=1, tokenizer=make_tokenizer(first_word="zebra")), folder / "foreign")
    prompts = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60}", "category": "ab"[i % 2]} for i in range(10)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


@pytest.fixture(scope="module")
def models(files):
    return load_model(str(files / "target")), load_model(str(files / "draft"), "draft")


def config(files, plain=None, drafting=None, **settings):
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    given |= {"num_draft_tokens": GAMMA, "max_new_tokens": 24, "num_prompts": 0}
    if plain is not None:
        given |= {"engine": "openai-server", "baseline_url": plain.url, "url": drafting.url, "server_patience": 1.0}
    return BenchConfig.flat(**(given | settings))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("owner", ["vllm", "llamacpp", "sglang"])
def test_a_servers_own_counters_are_what_was_predicted(files, models, owner, batch_size):
    target, draft = models
    with FakeVllm(target, owner=owner) as plain, FakeVllm(target, owner=owner, draft=draft) as drafting:
        report = bench(config(files, plain, drafting, batch_size=batch_size))
        counted = (drafting.drafts, drafting.drafted, drafting.accepted)
    acceptance = report.acceptance
    counters = acceptance.counters
    # The warm-up is none of it.
    assert counters.rounds < counted[0] and counters.accepted < counted[2]
    if owner != "sglang":
        assert counters.proposed < counted[1]
    assert acceptance.mean_acceptance_length.mean > 1.5
    off = acceptance.prediction.measured_over_predicted_minus_1
    # Ten prompts in three batches are too few for an interval.
    spread = [0, 0] if batch_size == 1 else [float("nan")] * 2
    assert off.mean == pytest.approx(0) and [off.low, off.high] == pytest.approx(spread, nan_ok=True)
    assert report.to_json()["lossless"] == {
        "checked": True,
        "lossy": False,
        "greedy_identical": True,
        "prompts_compared": 10,
        "differences": [],
    }
    assert report.setup.engine == "openai-server" and report.setup.rule == "greedy"
    assert report.latency.speedup.mean > 0 and report.partial is None
    assert set(acceptance.by_category) == {"a", "b"}
    assert (len(acceptance.by_position) == GAMMA) == (owner == "vllm")
    economics = report.economics
    predicted = acceptance.predicted_mean_acceptance_length[GAMMA]
    assert economics.predicted_speedup[GAMMA] == pytest.approx(predicted / economics.round_cost[GAMMA])
    assert economics.cost_ratio is None and economics.verify_cost == {}


def test_the_warm_up_is_as_long_as_the_usual_prompt(files, models, tmp_path, monkeypatch):
    target, draft = models
    asked, answer = [], ServedEngine.answer

    def record(self, prompts, *given):
        asked.append(prompts)
        return answer(self, prompts, *given)

    monkeypatch.setattr(ServedEngine, "answer", record)
    words = [{"prompt": " ".join(["w1 w2 w3 w4"] * times)} for times in (1, 20, 24, 50)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in words))
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft) as drafting:
        bench(config(files, plain, drafting, prompts=str(tmp_path / "prompts.jsonl"), max_new_tokens=8))
    (first,), (second,), *timed = asked
    usual = sorted(len(prompts[0]) for prompts in timed[::2])[2]
    assert first == second and usual / 2 < len(first) <= usual
    assert not any(first[:20] == prompts[0][:20] for prompts in timed)


def test_positions_are_the_counters_of_the_decoder(files, models):
    target, draft = models
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft) as drafting:
        served = bench(config(files, plain, drafting)).acceptance
    ours = bench(config(files)).acceptance
    assert served.mean_acceptance_length == ours.mean_acceptance_length
    # Ours leaves out rounds that could not propose as far; near an answer's end only.
    assert served.by_position[0] == pytest.approx(ours.by_position[0], abs=0.05)


def test_a_server_that_samples(files, models):
    target, draft = models
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft) as drafting:
        report = bench(config(files, plain, drafting, temperature=0.7, max_new_tokens=48))
    acceptance = report.acceptance
    # The target is behind the server: only what needs no target's probabilities is told, and no fake zeros.
    assert set(acceptance.alpha) == {"argmax_draft"} and report.setup.rule == "argmax_draft"
    # One seed writes the same with and without a draft under this rule, so that the prediction is exact.
    assert acceptance.prediction.measured_over_predicted_minus_1.mean == pytest.approx(0)
    assert report.lossless.checked is False and report.lossless.lossy is False


def test_a_server_that_tells_text_only(files, models, capsys):
    target, draft = models
    with FakeVllm(target, owner="x") as plain, FakeVllm(target, owner="x", draft=draft) as drafting:
        urls = ["--engine", "openai-server", "--url", drafting.url, "--baseline-url", plain.url]
        pair = ["--target", str(files / "target"), "--draft", str(files / "draft"), "--num-draft-tokens", "3"]
        out = files / "text.html"
        more = ["--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "16", "--html", str(out)]
        assert main(["bench", *pair, *urls, *more]) == 0
    printed = capsys.readouterr().out
    assert "tokens per target call: unknown" in printed and "in x, which accepts by greedy" in printed
    assert "<title>" in out.read_text()


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_transformers_assisted_generation(files, temperature):
    asked = config(files, engine="transformers", temperature=temperature, max_new_tokens=32)
    report = bench(asked)
    acceptance = report.acceptance
    off = acceptance.prediction.measured_over_predicted_minus_1
    if temperature == 0:
        assert report.lossless.greedy_identical and off.mean == pytest.approx(0)
    else:
        assert report.setup.rule == "sampled"
        assert off.mean == pytest.approx(0, abs=0.15)
    assert report.setup.engine_version.startswith("transformers 5")
    joint = acceptance.by_position
    assert len(joint) == GAMMA and joint == sorted(joint, reverse=True)


def run(files, plain_url, url, *more):
    pair = ["--target", str(files / "target"), "--draft", str(files / "draft"), "--num-draft-tokens", "3"]
    urls = ["--engine", "openai-server", "--url", url, "--baseline-url", plain_url, "--server-patience", "1"]
    asked = ["--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "16", "--num-prompts", "0"]
    return main(["bench", *pair, *urls, *asked, *more])


def one_line(capsys):
    # The imitated server's own complaints of a client that went away are not ours.
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specdistill: ")]
    return error


def test_a_draft_server_killed_in_the_middle_keeps_what_was_done(files, models, tmp_path, capsys):
    target, draft = models
    with FakeVllm(target) as plain:
        # The warm-up and four prompts, then every answer breaks off.
        drafting = FakeVllm(target, draft=draft, break_after=lambda number: None if number <= 5 else 2)
        with drafting:
            out, page = tmp_path / "report.json", tmp_path / "report.html"
            assert run(files, plain.url, drafting.url, "--json", str(out), "--html", str(page)) == 2
    captured = capsys.readouterr()
    assert "4 of 10 prompts are kept" in captured.err and "broke off" in captured.err
    assert "INCOMPLETE: 4 of 10 prompts" in captured.out
    report = json.loads(out.read_text())
    assert report["partial"]["prompts_done"] == 4 and report["setup"]["prompts"] == 4
    assert report["acceptance"]["prediction"]["measured_over_predicted_minus_1"]["mean"] == pytest.approx(0)
    assert "incomplete" in page.read_text()


def test_what_is_timed_is_kept_while_the_timing_goes_on(files, models, monkeypatch):
    """A kill in the middle of the timing took everything: the report was handed on at its end only."""
    monkeypatch.setattr("specdistill.evaluation.parts._SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr("specdistill.evaluation.parts._MOST_TIME", float("inf"))
    kept = []
    with FakeVllm(models[0]) as plain, FakeVllm(models[0], draft=models[1]) as drafting:
        whole = bench(config(files, plain, drafting), keep=kept.append)
    middle = [report for report in kept if "in the middle of timing" in report.partial.why]
    assert [report.partial.prompts_done for report in middle] == list(range(2, 11))
    assert [report.setup.prompts for report in middle] == list(range(2, 11))
    assert middle[-1].acceptance.mean_acceptance_length == whole.acceptance.mean_acceptance_length
    assert whole.partial is None


def test_a_server_that_breaks_off_once_is_asked_again(files, models):
    target, draft = models
    broken = FakeVllm(target, draft=draft, break_after=lambda number: 2 if number == 4 else None)
    with FakeVllm(target) as plain, broken as drafting:
        report = bench(config(files, plain, drafting))
    # The counts of the broken answer are left out.
    assert report.acceptance.prediction.measured_over_predicted_minus_1.mean == pytest.approx(0)
    assert report.lossless.prompts_compared == 10


def test_a_server_that_is_down(files, models, capsys):
    with FakeVllm(models[0]) as plain:
        assert run(files, plain.url, f"http://127.0.0.1:{free_port()}/v1") == 2
    assert "gives no answer since 1 s" in one_line(capsys)


def test_a_server_that_dies_before_two_prompts(files, models, capsys, tmp_path):
    broken = FakeVllm(models[0], draft=models[1], break_after=lambda number: 1)
    with FakeVllm(models[0]) as plain, broken as drafting:
        assert run(files, plain.url, drafting.url, "--json", str(tmp_path / "no.json")) == 2
    assert "broke off" in one_line(capsys) and not (tmp_path / "no.json").exists()


def test_a_slow_server(files, models, capsys):
    with FakeVllm(models[0]) as plain, FakeVllm(models[0], draft=models[1], delay=1.6) as drafting:
        assert run(files, plain.url, drafting.url, "--server-timeout", "1") == 2
    assert "timed out" in one_line(capsys)


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"<html>hello</html>", "which no OpenAI-compatible server does"),
        ([{"choices": [{"finish_reason": None}]}], "holds no tokens"),
        ([{"choices": [{"token_ids": [10**6], "finish_reason": "length"}]}], "outside the vocabulary"),
        ([{"choices": [{"token_ids": [], "finish_reason": "length"}]}], "answers nothing"),
        ([{"choices": [{"token_ids": [7], "finish_reason": "abort"}]}], "broke off an answer after 1 tokens"),
        ([{"error": {"message": "the engine is dead"}}], "the engine is dead"),
        (["{broken"], "which no OpenAI-compatible server does"),
    ],
)
def test_garbage(files, models, capsys, answer, line):
    with FakeVllm(models[0]) as plain:

        def fault(path, number):
            return (200, answer) if path == "/v1/completions" else None

        with FakeVllm(models[0], draft=models[1], fault=fault) as drafting:
            assert run(files, plain.url, drafting.url) == 2
    assert line in one_line(capsys)


def test_a_server_without_a_draft(files, models, capsys):
    with FakeVllm(models[0]) as plain, FakeVllm(models[0]) as drafting:
        assert run(files, plain.url, drafting.url) == 2
    assert "counts no drafts; was it started with --speculative-config?" in one_line(capsys)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"engine": "openai-server"}, "--url and --baseline-url go together"),
        ({"url": "http://x"}, "--url and --baseline-url go together"),
        ({"engine": "openai-server", "url": "x", "baseline_url": "y"}, "a server's URL starts with http"),
        (
            {"engine": "openai-server", "url": "http://x", "baseline_url": "http://y", "num_draft_tokens": 0},
            "needs --num-draft-tokens",
        ),
        ({"engine": "transformers", "batch_size": 2}, "one prompt at a time"),
        ({"engine": "transformers", "temperature": 1.0, "rule": "argmax_draft"}, "is none of transformers"),
        ({"engine": "vllm", "temperature": 1.0, "rule": "block"}, "is none of vllm"),
        ({"engine": "vllm", "pack": "int8"}, "are for our decoder"),
        ({"engine": "vllm", "draft_length": "auto"}, "are for our decoder"),
        ({"engine": "llama-cpp"}, "serves a .gguf file as --target"),
        ({"engine": "llama-cpp", "target": "t.gguf"}, "'specdistill export --format gguf' writes one"),
        ({"engine": "transformers", "engine_args": "-x"}, "goes with servers that bench starts"),
    ],
)
def test_settings_that_cannot_be(files, settings, text):
    with pytest.raises(ConfigError, match=text):
        config(files, **settings)


def test_engines_that_are_not_there(files, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    arguments = ["--target", str(files / "target"), "--draft", str(files / "draft")]
    assert main(["bench", *arguments, "--engine", "vllm"]) == 2
    assert "--engine vllm needs vLLM installed next to specdistill" in one_line(capsys)


def test_another_tokenizer_is_found_before_a_server_is_asked(files, capsys):
    urls = ["--engine", "openai-server", "--url", "http://127.0.0.1:9", "--baseline-url", "http://127.0.0.1:8"]
    arguments = ["--target", str(files / "target"), "--draft", str(files / "foreign"), "--num-draft-tokens", "2"]
    assert main(["bench", *arguments, *urls]) == 2
    assert "target and draft have different tokenizers: id 5 is 'w0'" in one_line(capsys)


# Lines of a real vLLM 0.32, its names shortened.
PAGE = """# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 5.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7955686195777106e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 15.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 4.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 3.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 1.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="2"} 0.0
"""


def test_counters_of_vllm():
    found = speculation.from_vllm_metrics(PAGE)
    assert found == Speculation(5, 15, 4, (3, 1, 0))
    # Data parallel: a page for several engines.
    assert speculation.from_vllm_metrics(PAGE + PAGE.replace('"0"', '"1"', 1)) is not None
    both = speculation.from_vllm_metrics(PAGE + PAGE.replace('engine="0"', 'engine="1"'))
    assert both == Speculation(10, 30, 8, (6, 2, 0))
    assert both is not None and found is not None and both - found == found and found + found == both
    assert speculation.from_vllm_metrics("# vllm:num_requests_running 0\n") is None


def test_counters_of_llama_cpp_and_sglang():
    # 40 tokens: the prompt's pass gave one, 27 calls one each and 12 accepted ones.
    timings = {"predicted_n": 40, "draft_n": 80, "draft_n_accepted": 12}
    assert speculation.from_llama_timings(timings) == Speculation(27, 80, 12)
    assert speculation.from_llama_timings({"predicted_n": 40}) is None
    with pytest.raises(ServerError, match="timings can't be read"):
        speculation.from_llama_timings({"draft_n": 3})
    meta = {"completion_tokens": 40, "spec_verify_ct": 27}
    assert speculation.from_sglang_meta(meta, 3) == Speculation(27, 81, 12)
    assert speculation.from_sglang_meta({"completion_tokens": 4}, 3) is None


def test_a_server_process_is_stopped_with_its_children(tmp_path):
    code = (
        "import subprocess, sys, time; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    process = ServerProcess("it", [sys.executable, "-c", code])
    end = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.check_alive()
    process.stop()
    child = int((tmp_path / "pid").read_text())
    time.sleep(0.2)
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(child)], capture_output=True, text=True).stdout.strip()
    assert state in ("", "Z") or state.startswith("Z")
    assert not process.log.exists()


def test_a_server_process_that_is_about_to_end_is_waited_for():
    """Its connections break first: asked at once, it seems alive."""
    process = ServerProcess("it", [sys.executable, "-c", "import time; time.sleep(1.0); raise SystemExit(9)"])
    process.check_alive()
    with pytest.raises(ServerError, match="it ended with code 9"):
        process.check_alive(grace=20)
    process.log.unlink()


def test_a_server_process_that_ends_says_its_last_words():
    process = ServerProcess("it", [sys.executable, "-c", "print('ValueError: no such model'); raise SystemExit(3)"])
    with pytest.raises(ServerError, match="it ended with code 3: ValueError: no such model"):
        process.wait_until_ready(f"http://127.0.0.1:{free_port()}", 20)
    assert "no such model" in process.log.read_text()
    process.log.unlink()
    with pytest.raises(ServerError, match="can't start it"):
        ServerProcess("it", ["/nowhere/at/all"])


def test_ctrl_c_stops_what_was_started(tmp_path):
    """A run that is interrupted while its server starts leaves no server behind."""
    code = f"""
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)
from specdistill.serving.server_process import ServerProcess
from specdistill.serving.engines import _stopping
process = ServerProcess("it", [sys.executable, "-c", "import time; time.sleep(60)"])
open({str(tmp_path / "pid")!r}, "w").write(str(process._child.pid))
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
with _stopping(process.stop):
    process.wait_until_ready("http://127.0.0.1:{free_port()}", 30)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "KeyboardInterrupt" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)
