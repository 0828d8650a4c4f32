"""`specdistill generate`: the answers that it writes, that a kill costs nothing, and two models on one budget."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import datasets
import pytest
from tiny_models import make_model
from tiny_runs import Said, generate_config, write_folder

from specdistill import GenerateConfig, generate, load_model
from specdistill.data import Provenance
from specdistill.distill.answers import shards
from specdistill.distill.answers.shards import read_rollouts
from specdistill.errors import ConfigError, DataError, OutputError
from specdistill.evaluation.cut_answers import cut_line, is_cut
from specdistill.report.distill import generation_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models of one tokenizer, and prompts of one to five words."""
    models = {"target": make_model(layers=2), "small": make_model(layers=1, seed=3)}
    prompts = [
        {"id": f"p{i}", "prompt": " ".join(f"w{i + k}" for k in range(1 + i % 5)), "answer": f"w{i}"} for i in range(10)
    ]
    return write_folder(tmp_path_factory.mktemp("generating"), models, prompts)


def three_answers(folder, output, **settings):
    """Configuration of three answers to each prompt, in shards of four prompts."""
    return generate_config(folder, output, **({"rollouts_per_prompt": 3, "shard_size": 4} | settings))


def answers(directory):
    return {(row["prompt_id"], row["copy"]): (row["seed"], row["answer_ids"]) for row in read_rollouts(directory)}


def test_writes_a_data_set_with_provenance(folder, tmp_path):
    summary = generate(three_answers(folder, tmp_path / "out"))
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert len(loaded) == 30 and summary.generators["target"].rollouts == 30
    row = loaded[0]
    tokenizer = load_model(str(folder / "target")).tokenizer
    assert row["answer"] == tokenizer.decode(row["answer_ids"], skip_special_tokens=True)
    assert row["model"] == str(folder / "target") and set(row["provenance"]) == {Provenance.TARGET}
    assert row["messages"][0]["role"] == "user" and row["finish_reason"] in ("eos", "length")
    assert summary.generators["target"].tokens == sum(len(row["answer_ids"]) for row in loaded)


def test_an_answer_depends_on_its_prompt_and_number_only(folder, tmp_path):
    generate(three_answers(folder, tmp_path / "one"))
    generate(three_answers(folder, tmp_path / "two", shard_size=7, batch_size=3))
    assert answers(tmp_path / "one") == answers(tmp_path / "two")


def test_more_answers_are_added_to_a_finished_directory(folder, tmp_path):
    generate(three_answers(folder, tmp_path / "out"))
    before = answers(tmp_path / "out")
    generate(three_answers(folder, tmp_path / "out", rollouts_per_prompt=5))
    after = answers(tmp_path / "out")
    assert len(after) == 50 and {key: after[key] for key in before} == before


def test_killed_at_any_moment_no_prompt_is_lost_or_answered_twice(folder, tmp_path):
    uncut = tmp_path / "uncut"
    generate(three_answers(folder, uncut, max_new_tokens=60, rollouts_per_prompt=6))
    command = ["generate", "--target", str(folder / "target"), "--output", str(tmp_path / "killed")]
    command += ["--prompts", str(folder / "prompts.jsonl"), "--rollouts-per-prompt", "6", "--max-new-tokens", "60"]
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
    generate(three_answers(folder, tmp_path / "killed", max_new_tokens=60, rollouts_per_prompt=6))
    rows = read_rollouts(tmp_path / "killed")
    assert len(rows) == len({(row["prompt_id"], row["copy"]) for row in rows}) == 60
    assert answers(tmp_path / "killed") == answers(uncut)


def test_other_settings_or_files_are_refused(folder, tmp_path):
    generate(three_answers(folder, tmp_path / "out"))
    with pytest.raises(OutputError, match="made with another --temperature, --seed"):
        generate(three_answers(folder, tmp_path / "out", temperature=0.5, seed=1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="already holds files"):
        generate(three_answers(folder, tmp_path / "full"))


def test_a_broken_shard_is_named(folder, tmp_path):
    generate(three_answers(folder, tmp_path / "out"))
    (tmp_path / "out" / shards.SHARD.format(0)).write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"train-00000.parquet can't be read"):
        read_rollouts(tmp_path / "out")
    with pytest.raises(DataError, match=f"holds its rollouts in folders; name one of them: {tmp_path / 'out'}"):
        read_rollouts(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no rollouts"):
        read_rollouts(tmp_path / "empty")


@pytest.mark.parametrize(("match", "settings"), [("compute", {}), ("cost", {"target_price": 6.0, "other_price": 1.5})])
def test_two_models_on_one_budget(folder, tmp_path, match, settings):
    """The cheaper model answers as often as the target's budget allows: more would exceed it."""
    summary = generate(
        three_answers(
            folder, tmp_path / "out", other=str(folder / "small"), match=match, scorer="exact-match", **settings
        )
    )
    target, other = summary.generators["target"], summary.generators["other"]
    unit = 1.5 if match == "cost" else 2 * other.parameters
    assert other.budget == pytest.approx(other.tokens * unit)
    copies = other.rollouts // 10
    assert copies >= (3 if match == "cost" else 1) and other.rollouts == copies * 10
    once = sum(len(row["answer_ids"]) for row in read_rollouts(tmp_path / "out" / "other") if row["copy"] == 0) * unit
    assert copies * once <= target.budget < (copies + 1) * once
    for generator in (target, other):
        assert 1 <= generator.distinct_per_prompt <= generator.rollouts / 10
        assert generator.target_log_likelihood < 0 and 0 <= generator.right_answers.coverage <= 1
    assert other.target_log_likelihood < target.target_log_likelihood, "the target likes its own answers more"


def test_the_report_names_temperature_budget_and_cut_answers(folder, tmp_path, capsys, monkeypatch):
    """The share of the budget that --match used, and how many answers were scored without their end."""
    monkeypatch.setenv("COLUMNS", "200")
    settings = {"other": str(folder / "small"), "scorer": "exact-match", "temperature": 0.5}
    summary = generate(three_answers(folder, tmp_path / "out", **settings))
    generation_table(summary)
    shown = capsys.readouterr().out
    assert "sampled at temperature 0.5" in shown
    target, other = summary.generators["target"], summary.generators["other"]
    used = other.tokens * other.parameters / (target.tokens * target.parameters)
    assert f"other used {used:.0%} of the target's budget" in shown and "raise --rollouts-per-prompt to come" in shown
    for role, generator in (("target", target), ("other", other)):
        rows = read_rollouts(tmp_path / "out" / role)
        cut = sum(row["finish_reason"] == "length" for row in rows)
        assert generator.cut == cut > 0.1 * len(rows)
        assert f"warning: {cut} of {len(rows)} answers of {role} were cut at --max-new-tokens 12 and scored" in shown
    assert re.search(rf"answers cut at 12 tokens +\S +{target.cut} +\S +{other.cut}", shown)
    # Unscored answers may well be cut: the table says how many.
    generation_table(generate(three_answers(folder, tmp_path / "unscored")))
    shown = capsys.readouterr().out
    assert "answers cut at 12 tokens" in shown and "warning" not in shown and "budget" not in shown


def test_few_cut_answers_are_no_warning():
    assert cut_line("target", 0, 20, 8) == ""
    assert cut_line("target", 1, 20, 8) == "1 of 20 answers of target were cut at --max-new-tokens 8"
    assert cut_line("target", 2, 20, 8).startswith("warning: 2 of 20")
    # An answer whose last token is its own end was not cut.
    assert is_cut([5, 6], 2, {1}) and not is_cut([5, 1], 2, {1}) and not is_cut([5], 2, {1})


def test_a_larger_other_is_warned_of(folder, tmp_path):
    said = Said()
    settings = {"other": str(folder / "target"), "target": str(folder / "small"), "rollouts_per_prompt": 1}
    generate(generate_config(folder, tmp_path / "out", **settings), said)
    (line,) = [line for line in said.lines if "swapped" in line]
    assert line.startswith("warning: --other") and line.endswith("are they swapped?")


def test_the_folder_of_two_models_answers_names_its_halves(tmp_path):
    for half in ("target", "other"):
        (tmp_path / half).mkdir()
        (tmp_path / half / shards.SHARD.format(0)).touch()
    with pytest.raises(DataError, match=f"name one of them: {tmp_path}/other or {tmp_path}/target$"):
        shards.find_shards(tmp_path)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"rollouts_per_prompt": 0}, "--rollouts-per-prompt"),
        ({"match": "cost", "other": "x"}, "needs --target-price"),
        ({"target_price": 1.0}, "goes with a second model, --other"),
        (
            {"other": "x", "match": "cost", "target_price": 1e9, "other_price": 1e-9},
            r"buys 4e\+18 answers of --other to each prompt, more than 10,000; both prices must be in one unit",
        ),
    ],
)
def test_refuses_settings(settings, text):
    with pytest.raises(ConfigError, match=text):
        GenerateConfig.flat(**({"target": "t", "output": "o"} | settings))


def test_scorer_is_checked_before_models(folder, tmp_path):
    wrong = three_answers(folder, tmp_path / "out").replace(other=str(folder / "small"), scorer="nowhere:f")
    with pytest.raises(ConfigError, match="can't import nowhere"):
        generate(wrong)
    assert not (tmp_path / "out").exists()
