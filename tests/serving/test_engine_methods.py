"""`bench --engine --method` and `--engine-baselines`: the engine's own ways of drafting, counted call by call."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import ClassVar

import pytest
from fake_vllm import FakeVllm, copied_run
from own_heads import make_base
from tiny_models import make_model, perturbed, save
from transformers import AutoModelForCausalLM

from specdistill import BenchConfig, bench, load_model
from specdistill.cli import main
from specdistill.errors import ConfigError, ServerError
from specdistill.report.html import html_report
from specdistill.serving import draft_flags, speculation
from specdistill.serving.engine_table import ENGINES, METHODS, Drafting
from specdistill.serving.engines import vllm_server
from specdistill.serving.speculation import Speculation

GAMMA, MAX, MIN = 3, 4, 2
COPIED = 4
"""Draft tokens of copies beside a draft that guesses GAMMA."""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A target that repeats itself, so that there is something to copy, a draft, and prompts."""
    folder = tmp_path_factory.mktemp("methods")
    target = make_model(layers=2, seed=3)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    prompts = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60} w{i} w{(7 * i) % 60}"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


@pytest.fixture(scope="module")
def target(files):
    return load_model(str(files / "target"))


def config(files, **settings):
    given = {"target": str(files / "target"), "prompts": str(files / "prompts.jsonl"), "num_prompts": 0}
    given |= {"num_draft_tokens": GAMMA, "max_new_tokens": 40}
    return BenchConfig.flat(**(given | settings))


def between(plain, drafting) -> dict:
    return {"engine": "openai-server", "baseline_url": plain.url, "url": drafting.url, "server_patience": 1.0}


def copying(target, prompts: Sequence[list[int]], answers: Sequence[list[int]], longest=MAX, shortest=MIN, most=GAMMA):
    """(tokens behind the first, target calls, calls with a proposal) of an engine that copies; by hand."""
    tokens = calls = proposing = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        done = 1
        while done < len(answer):
            proposed = copied_run([*prompt, *answer[:done]], longest, shortest, most)
            kept = 0
            while kept < len(proposed) and done + kept < len(answer) and answer[done + kept] == proposed[kept]:
                kept += 1
            done += kept + 1
            calls, proposing = calls + 1, proposing + bool(proposed)
        tokens += len(answer) - 1
    return tokens, calls, proposing


def test_ngram_of_a_server_counts_the_calls_without_a_proposal_too(files, target):
    with FakeVllm(target) as plain, FakeVllm(target, lookup=(MAX, MIN)) as drafting:
        report = bench(config(files, method="ngram", **between(plain, drafting)))
        total = drafting.calls, drafting.drafts
    acceptance = report.acceptance
    counters = acceptance.counters
    # The warm-up is none of it.
    assert 0 < counters.rounds < total[0] and total[1] < total[0], "some calls find nothing to copy"
    # Each call emits one token of its own.
    tokens = counters.rounds + counters.accepted
    assert acceptance.mean_acceptance_length.mean == pytest.approx(tokens / counters.rounds, rel=0.05)
    assert counters.rounds > total[1] * 8 / 9 and acceptance.mean_acceptance_length.mean > 1
    assert report.lossless.greedy_identical and report.lossless.prompts_compared == 8
    assert (report.draft.name, report.draft.kind, report.draft.parameters) == ("ngram", "ngram", 0)
    assert acceptance.alpha == {} and acceptance.prediction is None and report.baselines is None
    assert "ngram is no model that could be scored" in report.economics.why or "interval" in report.economics.why
    page = html_report(report)
    assert "alpha: unknown, for ngram is no draft model" in page and "another tokenizer" not in page


class Started:
    """In the place of a server process: imitates `vllm serve` by the flags that it was started with."""

    running: ClassVar[list[FakeVllm]] = []
    commands: ClassVar[list[list[str]]] = []

    def __init__(self, name, command, environment=None):
        words = list(command)
        self.commands.append(words)
        folder = words[words.index("--model") + 1] if "--model" in words else words[words.index("serve") + 1]
        asked = {}
        if "--speculative-config" in words:
            asked = json.loads(words[words.index("--speculative-config") + 1])
        given = {
            "port": int(words[words.index("--port") + 1]),
            "num_draft_tokens": asked.get("num_speculative_tokens", 0),
        }
        if asked.get("method") == "draft_model":
            given["draft"] = load_model(asked["model"], "draft")
        if asked.get("method") == "ngram":
            given["lookup"] = asked["prompt_lookup_max"], asked["prompt_lookup_min"]
        self.server = FakeVllm(load_model(folder), vllm_server.NAME, **given)
        self.server.__enter__()
        self.running.append(self.server)

    def wait_until_ready(self, url, timeout):
        assert url.endswith(str(self.server.port))

    def check_alive(self, grace=0.0):
        pass

    def stop(self):
        self.server.__exit__()
        self.running.remove(self.server)


@pytest.fixture
def started(monkeypatch):
    monkeypatch.setattr(Started, "commands", [])
    monkeypatch.setattr("specdistill.serving.engines.ServerProcess", Started)
    monkeypatch.setattr(vllm_server, "check_installed", lambda engine_args: None)
    yield Started
    assert not Started.running


def test_a_third_server_is_timed_in_turn_and_is_the_baseline(files, target, started, capsys):
    asked = config(files, draft=str(files / "draft"), engine="vllm")
    report = bench(asked)
    ways = ["--speculative-config" in words for words in started.commands]
    assert ways == [False, True, True], "plain, with the draft, with n-grams"
    third = json.loads(started.commands[2][started.commands[2].index("--speculative-config") + 1])
    assert third == {
        "method": "ngram", "num_speculative_tokens": COPIED, "prompt_lookup_max": MAX, "prompt_lookup_min": MIN,
    }  # fmt: skip
    (name,) = report.baselines
    baseline = report.baselines[name]
    assert name == "ngram" and baseline.settings == {"num_draft_tokens": COPIED, "max": MAX, "min": MIN}
    # By hand, from the answers that the target writes alone.
    from specdistill.data.prompts import encode_all, load_prompts
    from specdistill.decoding import Sampling, generate_plain

    encoded = encode_all(load_prompts(str(files / "prompts.jsonl")), target.tokenizer, 200)
    written = generate_plain(target, encoded, sampling=Sampling(temperature=0.0), max_new_tokens=40, seeds=[0] * 8)
    tokens, calls, proposing = copying(target, encoded, [answer.token_ids for answer in written], most=COPIED)
    assert baseline.mean_acceptance_length.mean == pytest.approx(tokens / calls)
    assert baseline.proposed_share == pytest.approx(proposing / calls) and proposing < calls
    assert baseline.speedup is not None and baseline.speedup.has_interval and baseline.predicted_speedup is None
    # The draft's own numbers are what they are without a baseline.
    alone = bench(config(files, draft=str(files / "draft"), engine="vllm", engine_baselines=("none",)))
    assert alone.acceptance == report.acceptance and alone.baselines is None and len(started.commands) == 5
    written = report.to_json()["baselines"]["ngram"]
    assert set(written) == {
        "settings", "mean_acceptance_length", "proposed_share", "predicted_mean_acceptance_length", "speedup",
        "over_draft",
    }  # fmt: skip
    # Copying is certain: the simulation on the plain answers says what the server counts.
    assert baseline.predicted_mean_acceptance_length == {COPIED: pytest.approx(tokens / calls)}
    assert "The draft and ways to draft without a model" in html_report(report)
    assert report.recommendation is not None and report.overlap is not None


class WithoutMemory(Started):
    """A server that copies does not start."""

    def wait_until_ready(self, url, timeout):
        if any(method in self.commands[-1][-1] for method in ("ngram", "suffix")):
            raise ServerError("a server ended with code 1: no memory")


def test_a_default_baseline_that_does_not_start_costs_the_bench_nothing(files, started, monkeypatch, capsys):
    monkeypatch.setattr("specdistill.serving.engines.ServerProcess", WithoutMemory)
    words = ["bench", "--target", str(files / "target"), "--draft", str(files / "draft"), "--engine", "vllm"]
    words += ["--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "8", "--num-prompts", "2"]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "BEWARE: measuring without ngram: a server ended with code 1: no memory" in captured.err
    assert "drafting without a model" not in captured.out
    # One that was asked for is missed.
    monkeypatch.setattr(vllm_server, "check_method", lambda method: None)
    assert main([*words, "--engine-baselines", "suffix"]) == 2
    assert "no memory; --engine-baselines none starts fewer servers" in capsys.readouterr().err


def test_each_server_gets_its_share_of_a_gpu(files):
    line = vllm_server.command(
        vllm_server.Launch(
            target="t", drafting=None, port=1, context=8, batch_size=1, device="cuda", dtype="float16", threads=0,
            servers=3, engine_args="",
        )
    )  # fmt: skip
    assert line[line.index("--gpu-memory-utilization") + 1] == "0.28"


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_prompt_lookup_of_transformers_with_and_without_a_draft(files, target, temperature, capsys):
    settings = {"engine": "transformers", "temperature": temperature, "max_new_tokens": 32}
    alone = bench(config(files, method="ngram", lookup_max=3, num_draft_tokens=COPIED, **settings))
    assert alone.setup.rule == ("argmax_draft" if temperature else "greedy") and alone.draft.kind == "ngram"
    assert alone.acceptance.mean_acceptance_length.mean > 1
    prediction = alone.acceptance.prediction
    assert prediction is not None
    if temperature == 0:
        # Above it the two runs draw other answers.
        assert prediction.measured == pytest.approx(prediction.mean_acceptance_length.mean)
    both = bench(config(files, draft=str(files / "draft"), lookup_max=3, **settings))
    baseline = both.baselines["ngram"]
    # The same prompts and seeds, and nothing of the draft reaches it.
    assert baseline.mean_acceptance_length == alone.acceptance.mean_acceptance_length
    assert baseline.settings == {"num_draft_tokens": COPIED, "max": 3, "min": 1}
    assert 0 < baseline.proposed_share < 1
    if temperature == 0:
        assert alone.lossless.greedy_identical


def test_the_command_line_without_a_draft(files, capsys, tmp_path):
    words = ["bench", "--engine", "transformers", "--method", "ngram", "--target", str(files / "target")]
    words += ["--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "16", "--json", str(tmp_path / "out.json")]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "draft ngram" in printed and "alpha: unknown, for ngram is no draft model that could be scored" in printed
    assert json.loads((tmp_path / "out.json").read_text())["draft"]["kind"] == "ngram"


def test_mtp_of_a_target_without_a_head_is_refused_before_a_server_starts(tmp_path, started, capsys):
    make_base("qwen3_next", tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "tuned")
    words = ["bench", "--engine", "vllm", "--method", "mtp", "--target", str(tmp_path / "tuned")]
    assert main(words) == 2 and not started.commands
    error = capsys.readouterr().err
    assert "holds none: qwen3_next models ship one" in error and "specdistill carry-head --base BASE" in error


def test_suffix_decoding_needs_its_package(files, monkeypatch, capsys):
    monkeypatch.setattr(vllm_server, "check_installed", lambda engine_args: None)
    real = vllm_server.importlib.util.find_spec
    monkeypatch.setattr(
        vllm_server.importlib.util, "find_spec", lambda name: name == "vllm" if name in ("vllm",) else real(name)
    )
    assert main(["bench", "--engine", "vllm", "--method", "suffix", "--target", str(files / "target")]) == 2
    assert "pip install arctic-inference" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "ngram"}, "--method ngram is none of --engine specdistill"),
        ({"method": "ngram-mod", "engine": "vllm"}, "it goes with --engine llama-cpp"),
        ({"method": "suffix", "engine": "transformers"}, "which takes draft, ngram; it goes with --engine vllm"),
        ({"method": "ngram", "engine": "vllm", "draft": "d"}, "needs no draft; leave --draft d away"),
        ({"method": "eagle3", "engine": "vllm"}, "--draft is required: the directory of the head"),
        ({"engine": "vllm"}, "--draft is required: the draft model"),
        ({}, "--draft is required"),
        ({"method": "ngram", "engine": "vllm", "temperature": 0.5, "rule": "sampled"}, "vllm with --method ngram"),
        ({"method": "ngram", "engine": "vllm", "scorer": "json"}, "has no draft model"),
        ({"method": "ngram", "engine": "vllm", "lookup_max": 1}, "--lookup-min 2 exceeds --lookup-max 1"),
        ({"draft": "d", "lookup_max": 7, "baselines": "none"}, "n-grams, which are not looked up here"),
        ({"draft": "d", "engine": "vllm", "baselines": "all"}, "our decoder; real engines have --engine-baselines"),
        ({"method": "ngram", "engine": "transformers", "lookup_min": 1}, "vLLM's n-gram"),
        ({"draft": "d", "engine": "vllm", "engine_baselines": ("none", "ngram")}, "or none alone"),
        ({"draft": "d", "engine": "vllm", "engine_baselines": ("ngram", "ngram")}, "names a method twice"),
        ({"draft": "d", "engine": "transformers", "engine_baselines": ("suffix",)}, "suffix is no method of"),
        ({"draft": "d", "engine_baselines": ("suffix",)}, "suffix is no method of --engine specdistill"),
    ],
)
def test_settings_that_cannot_be(files, settings, text):
    with pytest.raises(ConfigError) as error:
        config(files, **settings)
    assert text in str(error.value)


def test_which_baselines_run_by_default(files):
    pair = {"draft": "d"}
    assert config(files, engine="vllm", **pair).engine_baselines == ["ngram"]
    assert config(files, engine="vllm", method="ngram").engine_baselines == []
    assert config(files, engine="vllm", method="mtp", engine_baselines=("ngram", "suffix")).engine_baselines == [
        "ngram", "suffix",
    ]  # fmt: skip
    assert config(files, engine="vllm", engine_baselines=("none",), **pair).engine_baselines == []
    assert config(files, **pair).engine_baselines == []
    # llama.cpp's own name for the same.
    gguf = {"target": "t.gguf", "engine": "llama-cpp"}
    assert config(files, method="ngram-simple", **gguf).engine_baselines == []
    assert config(files, method="ngram-mod", **gguf).engine_baselines == ["ngram"]
    # A head is no draft model.
    with pytest.raises(ConfigError, match=r"ngram\+draft is no method of"):
        config(files, method="eagle3", draft="d.gguf", engine_baselines=("ngram+draft",), **gguf)


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("ngram", "ngram-simple --spec-draft-n-max 3 --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 3"),
        ("ngram-map-k", "ngram-map-k --spec-draft-n-max 3 --spec-ngram-map-k-size-n 4 --spec-ngram-map-k-size-m 3"),
        (
            "ngram-mod",
            "ngram-mod --spec-draft-n-max 3 --spec-ngram-mod-n-match 4 --spec-ngram-mod-n-max 3 "
            "--spec-ngram-mod-n-min 1",
        ),
        ("ngram-cache", "ngram-cache --spec-draft-n-max 3"),
        ("mtp", "draft-mtp --spec-draft-n-max 3"),
    ],
)  # fmt: skip
def test_flags_of_llama_cpp(method, flags):
    assert shlex.join(draft_flags.llama_cpp(Drafting(method=method, num_draft_tokens=3))) == f"--spec-type {flags}"


def test_flags_of_vllm():
    def asked(**settings) -> dict:
        return json.loads(draft_flags.vllm(Drafting(num_draft_tokens=3, **settings))[1])

    assert asked(method="mtp") == {"method": "mtp", "num_speculative_tokens": 3}
    assert asked(method="suffix") == {"method": "suffix", "num_speculative_tokens": 3}
    assert asked(method="eagle3", draft="h") == {"method": "eagle3", "model": "h", "num_speculative_tokens": 3}


def test_the_table_of_methods_is_the_choices():
    import typing

    from specdistill.serving.method_settings import MethodSettings

    hints = typing.get_type_hints(MethodSettings, include_extras=False)
    assert set(typing.get_args(hints["method"])) == set(METHODS)
    assert all(set(kind.names) <= set(ENGINES) for kind in METHODS.values())
    (inner, _) = typing.get_args(hints["engine_baselines"])
    assert set(typing.get_args(inner)) == {"none"} | {name for name, kind in METHODS.items() if kind.baseline}


PAGE = """vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 5.0
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 15.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 4.0
vllm:inter_token_latency_seconds_bucket{engine="0",le="0.01",model_name="m"} 3.0
vllm:inter_token_latency_seconds_count{engine="0",model_name="m"} 12.0
vllm:inter_token_latency_seconds_sum{engine="0",model_name="m"} 0.7
"""


def test_counters_of_methods_that_may_propose_nothing():
    assert speculation.from_vllm_metrics(PAGE, copies=True) == Speculation(12, 15, 4, None, 5)
    assert speculation.from_vllm_metrics(PAGE) == Speculation(5, 15, 4)
    # llama.cpp leaves the counts away where nothing was proposed.
    assert speculation.from_llama_timings({"predicted_n": 40}, copies=True) == Speculation(39, 0, 0)
    assert Speculation(12, 15, 4, None, 5) - Speculation(2, 5, 1, None, 1) == Speculation(10, 10, 3, None, 4)
