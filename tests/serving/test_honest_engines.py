"""Servers that are not what the command says are named; transformers measures the draft, not a generation config."""

from __future__ import annotations

import json

import pytest
from fake_vllm import FakeVllm
from tiny_models import make_model, make_tokenizer, perturbed, save
from tiny_runs import write_rows

from specdistill import BenchConfig, bench, load_model
from specdistill.cli import main
from specdistill.errors import ConfigError
from specdistill.servers.urls import same_server
from specdistill.serving.speculation import Speculation, another_length

GAMMA = 3


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    foreign = make_model(layers=1, seed=9, tokenizer=make_tokenizer(50, "other"), vocab_size=55)
    save(foreign, folder / "foreign")
    save(make_model(layers=1, seed=9, tokenizer=make_tokenizer(first_word="other")), folder / "as-large")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60}", "category": "ab"[i % 2]} for i in range(10)]
    write_rows(folder / "prompts.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def models(files):
    return load_model(str(files / "target")), load_model(str(files / "draft"), "draft")


def config(files, **settings):
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    return BenchConfig.flat(**(given | {"num_draft_tokens": GAMMA, "max_new_tokens": 24, "num_prompts": 0} | settings))


def served(files, plain, drafting, tmp_path, *more):
    command = ["bench", "--target", str(files / "target"), "--draft", str(files / "draft")]
    command += ["--engine", "openai-server", "--url", drafting.url, "--baseline-url", plain.url]
    command += ["--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "24", "--num-prompts", "0"]
    out = tmp_path / "report.json"
    return main([*command, "--json", str(out), *more]), out


def refusal(capsys):
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("specdistill: ")]
    return error


@pytest.mark.parametrize("drafted", [2, 5])
def test_a_server_that_drafts_another_number_is_refused_by_its_counters(files, models, tmp_path, capsys, drafted):
    target, draft = models
    with FakeVllm(target) as plain, FakeVllm(target, draft=draft, num_draft_tokens=drafted) as drafting:
        code, out = served(files, plain, drafting, tmp_path, "--num-draft-tokens", "3")
    assert code == 2 and not out.exists()
    assert f"drafts {drafted} tokens at a time by its own counters, but --num-draft-tokens is 3" in refusal(capsys)


@pytest.mark.parametrize(("drafted", "asked"), [(6, 3), (2, 6)])
def test_llama_cpp_that_drafts_another_number_is_warned_of(files, models, tmp_path, capsys, drafted, asked):
    target, _ = models
    # A draft that is seldom right, as rounds are plenty then.
    draft = make_model(layers=1, seed=5)
    plain = FakeVllm(target, owner="llamacpp")
    drafting = FakeVllm(target, owner="llamacpp", draft=draft, num_draft_tokens=drafted)
    with plain, drafting:
        code, _ = served(files, plain, drafting, tmp_path, "--num-draft-tokens", str(asked))
    captured = capsys.readouterr()
    text = " ".join((captured.out + captured.err).split())
    # The warm-up's eight tokens may tell already; then it is refused.
    assert f"but --num-draft-tokens is {asked}" in text and code in (0, 2)


def test_counts_that_the_ends_of_answers_explain_are_no_contradiction():
    assert another_length(Speculation(3, 20, 17), 8, answers=1) is None
    assert another_length(Speculation(1, 6, 6), 7, answers=1) is None
    assert another_length(Speculation(200, 1000, 400), 5, answers=10) is None
    assert another_length(Speculation(200, 600, 400), 5, answers=10) == 3
    # A warm-up of 8 tokens of which none is accepted: 6, 5, 4, 3, 2, 1 and 0 drafted.
    assert another_length(Speculation(7, 21, 0), 7, answers=1) is None
    assert another_length(Speculation(200, 1000, 400), 3, answers=10) == 5
    # SGLang tells no drafted tokens; more accepted than could be drafted gives it away.
    assert another_length(Speculation(100, 300, 450), 3, answers=10) == 4.5
    assert another_length(Speculation(9, 27, 5, (3, 1, 1)), 3, answers=1) is None
    assert another_length(Speculation(9, 45, 5, (3, 1, 1, 0, 0)), 3, answers=1) == 5


@pytest.mark.parametrize("owner", ["vllm", "llamacpp", "sglang"])
def test_a_baseline_that_drafts_is_refused(files, models, tmp_path, capsys, owner):
    target, draft = models
    plain, drafting = (FakeVllm(target, owner=owner, draft=draft) for _ in range(2))
    with plain, drafting:
        code, out = served(files, plain, drafting, tmp_path, "--num-draft-tokens", "3")
    assert code == 2 and not out.exists()
    error = refusal(capsys)
    assert "drafts, but is the baseline" in error and plain.url.removesuffix("/v1") in error


SAME = [
    ("http://host:8000", "http://host:8000/v1"),
    ("http://host:8000/v1/", "http://HOST:8000"),
    ("http://localhost:8000", "http://127.0.0.1:8000/v1"),
    ("http://localhost:8000", "http://127.0.0.2:8000"),
    ("http://localhost:8000", "http://[::ffff:127.0.0.1]:8000"),
    ("http://host", "http://host:80/"),
    ("https://host/v1", "https://host:443"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_server_under_two_spellings_is_no_comparison(files, one, other):
    assert same_server(one, other)
    with pytest.raises(ConfigError, match="both name"):
        config(files, engine="openai-server", url=one, baseline_url=other)


def test_two_servers_are_two():
    assert not same_server("http://host:8000", "http://host:8001")
    assert not same_server("http://a/one/v1", "http://a/two/v1")
    with pytest.raises(ConfigError, match="no valid port"):
        same_server("http://host:port", "http://host:1")


LEAKS = {
    "typical_p": 0.2,
    "epsilon_cutoff": 0.02,
    "eta_cutoff": 0.02,
    "no_repeat_ngram_size": 2,
    "suppress_tokens": list(range(5, 40)),
    "begin_suppress_tokens": list(range(5, 40)),
    "forced_eos_token_id": 50,
    "forced_bos_token_id": 50,
    "repetition_penalty": 5.0,
    "bad_words_ids": [[9], [10]],
    "min_new_tokens": 20,
    "exponential_decay_length_penalty": [2, 1.5],
    "temperature": 0.1,
    "top_k": 3,
    "use_cache": False,
    "num_beams": 1,
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("who", ["target", "draft"])
def test_a_generation_config_of_the_checkpoint_does_not_reach_transformers(files, tmp_path, temperature, who):
    clean = bench(config(files, engine="transformers", temperature=temperature))
    for name in ("target", "draft"):
        (tmp_path / name).mkdir()
        for file in (files / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    path = tmp_path / who / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | LEAKS))
    leaky = config(files, engine="transformers", temperature=temperature, **{who: str(tmp_path / who)})
    found = bench(leaky)
    assert found.acceptance.counters == clean.acceptance.counters
    assert found.acceptance.by_position == clean.acceptance.by_position
    assert found.acceptance.tokens_scored == clean.acceptance.tokens_scored


def test_stop_ids_of_the_generation_config_stay(files, tmp_path):
    for file in (files / "target").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": list(range(1, 30))}))
    short = bench(config(files, engine="transformers", target=str(tmp_path)))
    whole = bench(config(files, engine="transformers"))
    assert short.acceptance.tokens_scored < whole.acceptance.tokens_scored


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_draft_of_another_tokenizer_is_measured_by_universal_assisted_decoding(files, temperature):
    asked = config(files, engine="transformers", draft=str(files / "foreign"), temperature=temperature)
    report = bench(asked)
    acceptance, counters = report.acceptance, report.acceptance.counters
    assert acceptance.alpha == {} and acceptance.by_category == {} and acceptance.prediction is None
    assert counters.rounds > 0 and counters.proposed > 0 and 0 <= counters.accepted <= counters.proposed
    assert acceptance.mean_acceptance_length.mean >= 1
    assert report.economics.verdict in ("pays", "does not pay") and "another tokenizer" in report.economics.why
    content = report.to_json()
    assert content["economics"]["perfect_draft_speedup"] != content["economics"]["perfect_draft_speedup"]
    if temperature == 0:
        assert report.lossless.greedy_identical and report.lossless.prompts_compared == 10


def test_universal_assisted_decoding_is_shown_without_invented_numbers(files, tmp_path, capsys):
    command = ["bench", "--target", str(files / "target"), "--draft", str(files / "foreign"), "--temperature", "0"]
    command += ["--engine", "transformers", "--prompts", str(files / "prompts.jsonl"), "--max-new-tokens", "16"]
    page, out = tmp_path / "page.html", tmp_path / "report.json"
    assert main([*command, "--num-prompts", "0", "--html", str(page), "--json", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "alpha: unknown, for the draft has another tokenizer" in printed and "nan" not in printed
    assert "another tokenizer" in page.read_text() and ">nan" not in page.read_text()
    report = json.loads(out.read_text())
    assert report["economics"]["break_even_alpha"] is None and report["economics"]["perfect_draft_speedup"] is None
    assert report["acceptance"]["mean_acceptance_length"]["mean"] >= 1


def test_our_decoder_sends_a_draft_of_another_tokenizer_to_transformers(files, capsys):
    command = ["bench", "--target", str(files / "target"), "--draft", str(files / "foreign")]
    assert main([*command, "--prompts", str(files / "prompts.jsonl")]) == 2
    said = refusal(capsys)
    assert "a draft of another tokenizer works in transformers alone" in said
    assert "'specdistill bench --engine transformers' measures it" in said


def test_two_tokenizers_of_one_size_are_refused_in_one_line(files, capsys):
    """transformers compares sizes only, and would take the ids of one for the other's."""
    command = ["bench", "--target", str(files / "target"), "--draft", str(files / "as-large")]
    assert main([*command, "--engine", "transformers", "--prompts", str(files / "prompts.jsonl")]) == 2
    assert "both configs say vocab_size 65" in refusal(capsys)
