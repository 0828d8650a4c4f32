"""Commands with `--prompts self:N`: each takes the texts that its target wrote, and none of the other side."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import watched_run
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import annotate_config, cut_config, generate_config, train

from specdistill import BenchConfig, TargetSettings, annotate, bench, generate, init_draft
from specdistill.data import load_prompts
from specdistill.data.prompts import encode
from specdistill.distill.answers.generate import AnswerWriter
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.cutting import init_draft as cutting
from specdistill.errors import ConfigError
from specdistill.evaluation.scored_prompts import scored_prompts
from specdistill.files import run_settings
from specdistill.models import load
from specdistill.progress import Quiet

HOT = {"self_temperature": 2.0, "self_max_tokens": 30}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Target and draft, and the prompts that the target wrote beside them."""
    folder = tmp_path_factory.mktemp("self")
    save(make_model(layers=3), folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    return folder


@pytest.fixture(autouse=True)
def cache(folder, monkeypatch) -> Path:
    monkeypatch.setenv("SPECDISTILL_CACHE", str(folder / "cache"))
    return folder / "cache" / "prompts"


def written(cache: Path, name: str) -> list[tuple[int, ...]]:
    """Ids of each prompt in a file of the cache."""
    (file,) = cache.glob(f"*/{name}.jsonl")
    return [tuple(encode(prompt, make_tokenizer())) for prompt in load_prompts(str(file))]


def bench_config(folder: Path, draft: Path, **settings) -> BenchConfig:
    short = {"max_new_tokens": 8, "latency_prompts": 1, "max_draft_tokens": 2}
    return BenchConfig.flat(target=str(folder / "target"), draft=str(draft), **(short | HOT | settings))


def test_training_is_on_the_targets_own_texts(folder, cache, tmp_path):
    run = watched_run(folder, tmp_path / "out", prompts="self:24", **HOT)
    texts = written(cache, "train-24")
    trained = {one.prompt_ids for one in run.examples}
    # Six of the 24 judge the draft.
    assert len(texts) == 24 and trained <= set(texts) and 6 < len(trained) <= 18
    assert run_settings.read(tmp_path / "out")["prompts"] == "self:24"


def test_a_resumed_run_finds_its_prompts_again(folder, tmp_path, monkeypatch):
    train(folder, tmp_path / "out", prompts="self:24", checkpoint_every=4, **HOT)
    (tmp_path / "out" / "summary.json").unlink()
    train(folder, tmp_path / "out", prompts="self:24", checkpoint_every=4, resume=True, **HOT)


def test_bench_scores_prompts_that_training_never_saw(folder, cache, tmp_path):
    train(folder, tmp_path / "draft", prompts="self:24", **HOT)
    config = bench_config(folder, tmp_path / "draft", prompts="self:24", num_prompts=6)
    scored = [tuple(encode(prompt, make_tokenizer())) for prompt in scored_prompts(config, Quiet())]
    assert scored == written(cache, "heldout-6") and not set(scored) & set(written(cache, "train-24"))
    report = bench(config)
    assert report.setup.prompts == 6 and report.setup.prompt_source == "self:24" and report.training_prompts is None


def test_bench_warns_of_the_training_side(folder, tmp_path):
    train(folder, tmp_path / "draft", prompts="self:24", **HOT)
    (warned,) = bench(bench_config(folder, tmp_path / "draft", prompts="self:6:train")).training_prompts or []
    assert warned.shared_prompts == 6 and "trained or chosen on 6 of the 6 prompts" in warned.remark
    # More prompts than training had.
    (warned,) = bench(bench_config(folder, tmp_path / "draft", prompts="self:30:train")).training_prompts or []
    assert warned.shared_prompts == 24


def test_a_trained_draft_is_benched_where_its_prompts_are_gone(folder, tmp_path, monkeypatch):
    train(folder, tmp_path / "draft", prompts="self:24", **HOT)
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "other"))
    assert bench(bench_config(folder, tmp_path / "draft", prompts="self:6")).training_prompts is None


def test_answers_and_labels_are_of_the_targets_own_prompts(folder, cache, tmp_path):
    generate(generate_config(folder, tmp_path / "answers", prompts="self:10", rollouts_per_prompt=1, **HOT))
    rows = read_rollouts(tmp_path / "answers")
    assert sorted(tuple(row["prompt_ids"]) for row in rows) == sorted(written(cache, "train-10"))
    (tmp_path / "system.txt").write_text("w1")
    seeing = {"target_system": str(tmp_path / "system.txt"), "prompts": "self:10", **HOT}
    generate(generate_config(folder, tmp_path / "seeing", rollouts_per_prompt=1, **seeing))
    annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "seeing"), **seeing))
    labelled = read_rollouts(tmp_path / "labels")
    assert sorted(tuple(row["prompt_ids"]) for row in labelled) == sorted(written(cache, "train-10"))


def test_a_cut_is_calibrated_on_them(folder, cache, tmp_path, monkeypatch):
    asked: list[list[int]] = []
    original = cutting.write_answers

    def watched(target, prompts, encoded, *arguments, **settings):
        asked.extend(encoded)
        return original(target, prompts, encoded, *arguments, **settings)

    monkeypatch.setattr(cutting, "write_answers", watched)
    init_draft(cut_config(folder, tmp_path / "cut", prompts="self:10", choose="even", calibration_prompts=8, **HOT))
    # No more are written than it takes.
    assert [tuple(ids) for ids in asked] == written(cache, "train-8")


def test_a_worker_of_a_cluster_finds_them_without_weights(folder, tmp_path, monkeypatch):
    config = generate_config(folder, tmp_path / "answers", prompts="self:10", **HOT)
    generate(config)
    AnswerWriter(config, None, [])
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "of-another-machine"))
    with pytest.raises(ConfigError, match="not loaded here"):
        AnswerWriter(config, None, [])


def test_where_the_target_is_not_loaded_prompts_must_be_there(folder, tmp_path, monkeypatch):
    generate(generate_config(folder, tmp_path / "answers", prompts="self:24", rollouts_per_prompt=1, **HOT))
    annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers")))
    stored = {"soft_labels": str(tmp_path / "labels"), "prompts": "self:24", **HOT}
    train(folder, tmp_path / "out", **stored)
    monkeypatch.setenv("SPECDISTILL_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(load, "load_model", None)
    with pytest.raises(ConfigError, match=r"weights of --target .* are not loaded here.*specdistill generate"):
        train(folder, tmp_path / "other", **stored)
    served = TargetSettings(target_server="http://localhost:1")
    assert not served.place.has_weights
    with pytest.raises(ConfigError, match="not loaded here"):
        train(folder, tmp_path / "third", target_server="http://localhost:1", prompts="self:24", **HOT)
    assert not (tmp_path / "empty").exists() and not (tmp_path / "other").exists()
