"""Parallel drafts in engines: what starts them, what each engine does with one, and what an export keeps."""

from __future__ import annotations

import json

import pytest
from parallel_drafts import MASK, make_parallel
from tiny_models import make_model, save

from specdistill import load_model
from specdistill.cli import main
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.serving import draft_flags, engine_models
from specdistill.serving.bench_config import BenchConfig
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.engine_table import ENGINES, Drafting
from specdistill.serving.engines import _in_one_pass
from specdistill.serving.gates import check


@pytest.fixture
def pair(tmp_path):
    save(make_model(layers=2, vocab_size=72), tmp_path / "target")
    save(make_parallel(layers=1, trained=8), tmp_path / "draft")
    return tmp_path


def launched(command: str) -> dict[str, object]:
    return json.loads(command.split("--speculative-config ")[1].strip("'"))


def test_check_starts_vllm_in_one_pass_and_says_what_the_others_do(pair):
    asked = CheckConfig.flat(target=str(pair / "target"), draft=str(pair / "draft"))
    found = {verdict.engine: verdict for verdict in check(asked)}
    assert all(verdict.loads for verdict in found.values())
    assert launched(found["vllm"].command)["parallel_drafting"] is True
    assert launched(found["vllm"].command)["num_speculative_tokens"] == 8, "what it was trained for"
    assert not found["vllm"].warnings
    for name in ("sglang", "llama.cpp", "transformers", "tensorrt-llm"):
        assert f"behind mask token {MASK}, which this launch does not use" in found[name].warnings[0]
    # Eight tokens would cost eight passes there.
    assert "--speculative-num-draft-tokens 5" in found["sglang"].command
    assert "--spec-draft-n-max 4" in found["llama.cpp"].command
    asked = CheckConfig.flat(target=str(pair / "target"), draft=str(pair / "draft"), num_draft_tokens=4)
    (warning,) = next(verdict for verdict in check(asked) if verdict.engine == "vllm").warnings
    assert "trained to guess 8 tokens in one pass, and this launch asks for 4" in warning


def test_an_ordinary_draft_is_launched_as_before(pair):
    save(make_model(layers=1, vocab_size=72), pair / "plain")
    asked = CheckConfig.flat(target=str(pair / "target"), draft=str(pair / "plain"))
    found = {verdict.engine: verdict for verdict in check(asked)}
    launch = launched(found["vllm"].command)
    assert "parallel_drafting" not in launch and launch["num_speculative_tokens"] == 4
    assert not any(verdict.warnings for verdict in found.values())


def test_a_contradiction_is_one_line(pair, capsys):
    file = pair / "draft/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"pard_token": 99}))
    assert main(["check", "--target", str(pair / "target"), "--draft", str(pair / "draft")]) == 2
    error = capsys.readouterr().err
    assert "pard_token 99" in error and len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("engine", "one_by_one", "parallel"),
    [("vllm", False, True), ("vllm", True, False), ("transformers", False, False), ("openai-server", False, True)],
)
def test_bench_predicts_and_launches_what_the_engine_does(pair, engine, one_by_one, parallel):
    more = {}
    if engine == "openai-server":
        more = {"url": "http://a:1/v1", "baseline_url": "http://b:1/v1", "num_draft_tokens": 4}
    config = BenchConfig.flat(
        target=str(pair / "target"), draft=str(pair / "draft"), engine=engine, one_by_one=one_by_one, **more
    )
    assert config.in_one_pass == parallel
    sources = engine_models.find(config, print)
    for models in (engine_models.shells(config, sources), engine_models.loaded(config, sources, print)):
        assert (models.draft.parallel is not None) == parallel
        asked = _in_one_pass(models, Drafting(draft="d", num_draft_tokens=4))
        assert ("parallel_drafting" in launched(" ".join(draft_flags.vllm(asked)))) == parallel
        assert not _in_one_pass(models, Drafting(method="ngram", num_draft_tokens=4)).in_one_pass
    assert not ENGINES["llama-cpp"].in_one_pass


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, 8),
        ({"num_draft_tokens": 3}, 3),
        ({"one_by_one": True}, 0),
        ({"engine": "transformers"}, 0),
        ({"max_draft_tokens": 6}, 0),
        ({"method": "ngram", "draft": None}, 0),
    ],
    ids=str,
)
def test_bench_asks_an_engine_for_what_the_draft_was_trained_for(pair, settings, length):
    """0 leaves the engine's usual length."""
    named = {"target": str(pair / "target"), "draft": str(pair / "draft"), "engine": "vllm"}
    config = BenchConfig.flat(**named | settings)
    assert engine_models.with_length(config, engine_models.find(config, print)).num_draft_tokens == length


@pytest.mark.parametrize("form", ["vllm", "sglang", "transformers"])
def test_an_export_keeps_the_mask_token(pair, form, capsys):
    (pair / "draft/README.md").write_text("# A parallel draft\n")
    words = ["export", "--target", str(pair / "target"), "--draft", str(pair / "draft"), "--format", form]
    assert main([*words, "--output", str(pair / "out")]) == 0
    said = capsys.readouterr().out
    exported = load_model(str(pair / "out"), "draft")
    assert exported.parallel == ParallelDrafting(MASK, 8)
    assert "no mask token" not in (pair / "out/README.md").read_text()
    if form == "vllm":
        assert f"mask token {MASK} is kept" in said and '"parallel_drafting": true' in said
        assert '"num_speculative_tokens": 8' in said and "trained to guess" not in said
    else:
        assert f"mask token {MASK} is not used: this engine drafts one token per pass" in said


def test_a_mask_token_beyond_the_target_is_refused_for_vllm_and_dropped_for_others(pair, capsys):
    save(make_model(layers=2), pair / "small")
    words = ["export", "--target", str(pair / "small"), "--draft", str(pair / "draft")]
    asked = CheckConfig.flat(target=str(pair / "small"), draft=str(pair / "draft"))
    refusals = {each.engine: each.refusals for each in check(asked)}
    assert any(f"mask token {MASK} lies beyond the target's" in each for each in refusals["vllm"])
    assert not any("specdistill export" in each for each in refusals["vllm"]), "which refuses it too"
    assert all("specdistill export" in refusals[engine][0] for engine in ("sglang", "tensorrt-llm"))
    assert main([*words, "--format", "vllm", "--output", str(pair / "out")]) == 2
    assert f"the mask token {MASK} of" in capsys.readouterr().err and not (pair / "out/config.json").exists()
    (pair / "draft/README.md").write_text("# A parallel draft\n")
    assert main([*words, "--format", "transformers", "--output", str(pair / "other")]) == 0
    assert load_model(str(pair / "other"), "draft").parallel is None
    assert "It has no mask token, and drafts one token per pass." in (pair / "other/README.md").read_text()
