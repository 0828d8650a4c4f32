"""`specdistill generate`: what it writes, that a kill costs nothing, and two models on one budget."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import datasets
import pytest
from tiny_models import make_model, save

from specdistill import GenerateConfig, generate, load_model
from specdistill.distill.answers import shards
from specdistill.distill.answers.shards import read_rollouts
from specdistill.errors import ConfigError, DataError, OutputError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generating")
    save(make_model(layers=2), folder / "target")
    save(make_model(layers=1, seed=3), folder / "small")
    prompts = [
        {"id": f"p{i}", "prompt": " ".join(f"w{i + k}" for k in range(1 + i % 5)), "answer": f"w{i}"} for i in range(10)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def config(files, output, **settings):
    defaults = {
        "prompts": str(files / "prompts.jsonl"),
        "rollouts_per_prompt": 3,
        "max_new_tokens": 12,
        "shard_size": 4,
    }
    return GenerateConfig.flat(target=str(files / "target"), output=str(output), **(defaults | settings))


def answers(directory):
    return {(row["prompt_id"], row["copy"]): (row["seed"], row["answer_ids"]) for row in read_rollouts(directory)}


def test_writes_a_data_set_with_provenance(files, tmp_path):
    summary = generate(config(files, tmp_path / "out"))
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert len(loaded) == 30 and summary["generators"]["target"]["rollouts"] == 30
    row = loaded[0]
    tokenizer = load_model(str(files / "target")).tokenizer
    assert row["answer"] == tokenizer.decode(row["answer_ids"], skip_special_tokens=True)
    assert row["model"] == str(files / "target") and set(row["provenance"]) == {2}
    assert row["messages"][0]["role"] == "user" and row["finish_reason"] in ("eos", "length")
    assert summary["generators"]["target"]["tokens"] == sum(len(each["answer_ids"]) for each in loaded)


def test_an_answer_depends_on_its_prompt_and_number_only(files, tmp_path):
    generate(config(files, tmp_path / "one"))
    generate(config(files, tmp_path / "two", shard_size=7, batch_size=3))
    assert answers(tmp_path / "one") == answers(tmp_path / "two")


def test_more_answers_are_added_to_a_finished_directory(files, tmp_path):
    generate(config(files, tmp_path / "out"))
    before = answers(tmp_path / "out")
    generate(config(files, tmp_path / "out", rollouts_per_prompt=5))
    after = answers(tmp_path / "out")
    assert len(after) == 50 and {key: after[key] for key in before} == before


def test_killed_at_any_moment_no_prompt_is_lost_or_answered_twice(files, tmp_path):
    whole = tmp_path / "whole"
    generate(config(files, whole, max_new_tokens=60, rollouts_per_prompt=6))
    command = ["generate", "--target", str(files / "target"), "--output", str(tmp_path / "killed")]
    command += ["--prompts", str(files / "prompts.jsonl"), "--rollouts-per-prompt", "6", "--max-new-tokens", "60"]
    command += ["--shard-size", "4"]
    kills = 0
    for wanted in (1, 5, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", "from specdistill.cli import main; raise SystemExit(main())", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        while process.poll() is None and len(list((tmp_path / "killed").glob("*.parquet"))) < wanted:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2, "the run must have been cut off"
    generate(config(files, tmp_path / "killed", max_new_tokens=60, rollouts_per_prompt=6))
    rows = read_rollouts(tmp_path / "killed")
    assert len(rows) == len({(row["prompt_id"], row["copy"]) for row in rows}) == 60
    assert answers(tmp_path / "killed") == answers(whole)


def test_other_settings_or_files_are_refused(files, tmp_path):
    generate(config(files, tmp_path / "out"))
    with pytest.raises(OutputError, match="made with another --temperature, --seed"):
        generate(config(files, tmp_path / "out", temperature=0.5, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="already holds files"):
        generate(config(files, tmp_path / "full"))


def test_a_broken_shard_is_named(files, tmp_path):
    generate(config(files, tmp_path / "out"))
    (tmp_path / "out" / shards.SHARD.format(0)).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"train-00000.parquet can't be read"):
        read_rollouts(tmp_path / "out")
    with pytest.raises(DataError, match="holds no rollouts"):
        read_rollouts(tmp_path)


@pytest.mark.parametrize(("match", "settings"), [("compute", {}), ("cost", {"target_price": 6.0, "other_price": 1.5})])
def test_two_models_on_one_budget(files, tmp_path, match, settings):
    """The cheaper model answers as often as the target's budget allows: more would exceed it."""
    summary = generate(
        config(files, tmp_path / "out", other=str(files / "small"), match=match, scorer="exact-match", **settings)
    )
    target, other = summary["generators"]["target"], summary["generators"]["other"]
    unit = 1.5 if match == "cost" else 2 * other["parameters"]
    assert other["budget"] == pytest.approx(other["tokens"] * unit)
    copies = other["rollouts"] // 10
    assert copies >= (3 if match == "cost" else 1) and other["rollouts"] == copies * 10
    once = sum(len(row["answer_ids"]) for row in read_rollouts(tmp_path / "out" / "other") if row["copy"] == 0) * unit
    assert copies * once <= target["budget"] < (copies + 1) * once
    for found in (target, other):
        assert 1 <= found["distinct_per_prompt"] <= found["rollouts"] / 10
        assert found["target_log_likelihood"] < 0 and 0 <= found["coverage"] <= 1
    assert other["target_log_likelihood"] < target["target_log_likelihood"], "the target likes its own answers more"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rollouts_per_prompt": 0}, "--rollouts-per-prompt"),
        ({"temperature": 0.0}, "--rollouts-per-prompt 1"),
        ({"match": "cost", "other": "x"}, "needs --target-price"),
        ({"target_price": 1.0}, "name it with --other"),
    ],
)
def test_refuses_settings(settings, text):
    with pytest.raises(ConfigError, match=text):
        GenerateConfig.flat(**({"target": "t", "output": "o"} | settings))


def test_scorer_is_checked_before_models(files, tmp_path):
    wrong = config(files, tmp_path / "out").replace(other=str(files / "small"), scorer="nowhere:f")
    with pytest.raises(ConfigError, match="can't import nowhere"):
        generate(wrong)
    assert not (tmp_path / "out").exists()
