"""--chat-template-kwargs and --raw-prompts: every command renders alike, stores it, and compares it on reuse."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import yaml
from fake_vllm import FakeVllm
from tiny_models import TEMPLATE
from tiny_runs import (
    annotate_config,
    any_config,
    cut_config,
    generate_config,
    standard_models,
    train,
    train_config,
    train_settings,
    write_folder,
    write_rows,
)
from transformers import PreTrainedTokenizerBase

from specdistill import BenchConfig, annotate, bench, generate, init_draft, load_model
from specdistill.cli import main
from specdistill.distill.answers.shards import read_rollouts
from specdistill.errors import ConfigError, DataError, ServerError
from specdistill.evaluation.interruption import Interruption
from specdistill.files import run_settings
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables
from specdistill.serving import engine_timing

KWARGS = '{"enable_thinking": false}'
QUICK = {"chat_template_kwargs": KWARGS}
# What the template writes behind <bot>: ids of w7 and w9.
THINKS, DOES_NOT = 12, 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The standard models, whose template thinks unless it is told not to, and answers under both settings."""
    models = standard_models()
    for model in models.values():
        model.tokenizer.chat_template = TEMPLATE + "{% if enable_thinking | default(true) %}w7 {% else %}w9 {% endif %}"
    folder = write_folder(tmp_path_factory.mktemp("chat"), models)
    once = {"rollouts_per_prompt": 1}
    for name, settings in (("quick", QUICK), ("plain", {})):
        generate(generate_config(folder, folder / f"answers-{name}", **once, **settings))
        labelled = {"rollouts": str(folder / f"answers-{name}")}
        annotate(annotate_config(folder, folder / f"labels-{name}", **labelled, **settings))
    return folder


@pytest.fixture
def rendered(monkeypatch):
    """Template arguments of everything that is rendered."""
    calls = []
    original = PreTrainedTokenizerBase.apply_chat_template

    def recording(self, conversation, **arguments):
        calls.append(arguments.get("enable_thinking", "unset"))
        return original(self, conversation, **arguments)

    monkeypatch.setattr(PreTrainedTokenizerBase, "apply_chat_template", recording)
    return calls


def bench_config(folder, **settings):
    places = {name: str(folder / name) for name in ("target", "draft")} | {"prompts": str(folder / "prompts.jsonl")}
    short = {"num_prompts": 4, "max_new_tokens": 8, "max_draft_tokens": 2, "num_draft_tokens": 2}
    return BenchConfig.flat(**(places | short | settings))


def run_train(folder, output, **settings):
    train(folder, output, **({"steps": 2, "eval_every": 2, "rollouts_per_prompt": 1} | QUICK | settings))


def run_served(folder, output):
    with FakeVllm(load_model(str(folder / "target"))) as served:
        run_train(folder, output, method="supervised-kd", target_server=served.url, server_patience=20)


WIRES = {
    "generate": lambda folder, output: generate(generate_config(folder, output, **QUICK)),
    "generate, two models": lambda folder, output: generate(
        generate_config(folder, output, other=str(folder / "draft"), rollouts_per_prompt=1, **QUICK)
    ),
    "annotate, own answers": lambda folder, output: annotate(
        annotate_config(folder, output, rollouts=None, prompts=str(folder / "prompts.jsonl"), **QUICK)
    ),
    "annotate, rollouts": lambda folder, output: annotate(
        annotate_config(folder, output, rollouts=str(folder / "answers-quick"), **QUICK)
    ),
    "init-draft": lambda folder, output: init_draft(cut_config(folder, output, choose="even", **QUICK)),
    "train-draft": run_train,
    "train-draft, gkd": lambda folder, output: run_train(folder, output, method="gkd"),
    "train-draft, skd": lambda folder, output: run_train(folder, output, method="skd"),
    "train-draft, guidance": lambda folder, output: run_train(folder, output, guidance=0.5, negative_prompt="w3"),
    "train-draft, another tokenizer": lambda folder, output: run_train(
        folder, output, method="seqkd", draft=str(folder / "foreign")
    ),
    "train-draft, rollouts": lambda folder, output: run_train(folder, output, rollouts=str(folder / "answers-quick")),
    "train-draft, labels": lambda folder, output: run_train(folder, output, soft_labels=str(folder / "labels-quick")),
    "train-draft, served": run_served,
    "bench": lambda folder, output: bench(bench_config(folder, **QUICK)),
    "bench, transformers": lambda folder, output: bench(bench_config(folder, engine="transformers", **QUICK)),
}


@pytest.mark.parametrize("wire", WIRES)
def test_everything_that_a_command_encodes_is_rendered_with_the_setting(folder, tmp_path, rendered, wire):
    WIRES[wire](folder, tmp_path / "out")
    assert rendered and set(rendered) == {False}


@pytest.mark.parametrize("name", ["quick", "plain"])
@pytest.mark.parametrize("kind", ["answers", "labels"])
def test_stored_prompts_are_other_text_under_another_setting(folder, kind, name):
    rows = read_rollouts(folder / f"{kind}-{name}")
    assert {row["prompt_ids"][-1] for row in rows} == {DOES_NOT if name == "quick" else THINKS}


def test_a_run_stores_the_setting_and_its_rollouts_are_that_text(folder, tmp_path):
    run_train(folder, tmp_path / "out")
    assert run_settings.read(tmp_path / "out")["chat_template_kwargs"] == KWARGS
    for name in ("rollouts", "heldout"):
        assert {row["prompt_ids"][-1] for row in read_rollouts(tmp_path / "out" / name)} == {DOES_NOT}
    # The folder of rollouts has no settings of its own: the run's beside it count.
    with pytest.raises(DataError, match="was made with --chat-template-kwargs"):
        train(folder, tmp_path / "other", rollouts=str(tmp_path / "out" / "rollouts"))


def test_an_engines_warm_up_is_rendered_like_its_prompts(folder, rendered):
    asked = []

    def answer(prompts, *rest):
        asked.extend(prompts)
        raise ServerError("enough")

    target = load_model(str(folder / "target"))
    engine = SimpleNamespace(answer=answer)
    config = bench_config(folder, engine="transformers", **QUICK)
    with pytest.raises(ServerError, match="enough"):
        opened = SimpleNamespace(plain=engine, drafting=engine, baselines={})
        progress = SimpleNamespace(say=print)
        engine_timing.time_engines(config, opened, target, [[3]], progress, Interruption(print))  # pyright: ignore
    assert [ids[-1] for ids in asked] == [DOES_NOT]


# ---- reuse


@pytest.mark.parametrize(("flag", "kind"), [("--rollouts", "answers"), ("--soft-labels", "labels")])
@pytest.mark.parametrize(("stored", "now"), [("quick", None), ("plain", KWARGS)])
def test_answers_of_other_template_arguments_are_refused(folder, tmp_path, capsys, flag, kind, stored, now):
    settings = train_settings(folder, tmp_path / "out") | {flag[2:].replace("-", "_"): str(folder / f"{kind}-{stored}")}
    settings |= {"method": "distillspec"} | ({} if now is None else {"chat_template_kwargs": now})
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train-draft", "--config", str(tmp_path / "settings.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert f"{flag} {folder / f'{kind}-{stored}'} was made with" in line and KWARGS in line
    assert "unexpected" not in line and not (tmp_path / "out").exists()


def test_annotate_refuses_answers_of_other_template_arguments(folder, tmp_path):
    with pytest.raises(DataError, match="was made with --chat-template-kwargs"):
        annotate(annotate_config(folder, tmp_path / "out", rollouts=str(folder / "answers-quick")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [{"chat_template_kwargs": None}, {"chat_template_kwargs": '{"a": 1}'}])
def test_generate_does_not_go_on_with_other_template_arguments(folder, tmp_path, changed):
    generate(generate_config(folder, tmp_path / "out", rollouts_per_prompt=1, **QUICK))
    with pytest.raises(OSError, match="made with another --chat-template-kwargs"):
        generate(generate_config(folder, tmp_path / "out", rollouts_per_prompt=2, **changed))


def test_a_run_does_not_resume_with_other_template_arguments(folder, tmp_path):
    (tmp_path / "out").mkdir()
    run_settings.write(tmp_path / "out", train_config(folder, tmp_path / "out", **QUICK).to_flat())
    with pytest.raises(OSError, match="another --chat-template-kwargs"):
        train(folder, tmp_path / "out", resume=True)


def test_a_rows_own_arguments_survive_generate_and_annotate(folder, tmp_path):
    rows = [{"id": f"p{i}", "prompt": f"w{i}"} for i in range(2)]
    rows[0]["chat_template_kwargs"] = {"enable_thinking": True}  # pyright: ignore[reportArgumentType]
    write_rows(tmp_path / "p.jsonl", rows)
    once = {"prompts": str(tmp_path / "p.jsonl"), "rollouts_per_prompt": 1}
    generate(generate_config(folder, tmp_path / "answers", **once, **QUICK))
    annotate(annotate_config(folder, tmp_path / "labels", rollouts=str(tmp_path / "answers"), **QUICK))
    stored = {row["prompt_id"]: row for row in read_rollouts(tmp_path / "labels")}
    assert stored["p0"]["prompt_ids"][-1] == THINKS and stored["p1"]["prompt_ids"][-1] == DOES_NOT
    arguments = [json.loads(stored[name].get("asked", ""))["chat_template_kwargs"] for name in ("p0", "p1")]
    assert arguments == [{"enable_thinking": True}, {"enable_thinking": False}]


# ---- raw prompts


def test_raw_prompts_reach_the_target_as_they_are(folder, tmp_path, rendered):
    write_rows(tmp_path / "p.jsonl", [{"prompt": "<user> w1 <bot> w9"}, {"prompt": "<user> w2 <bot> w9"}])
    raw = {"prompts": str(tmp_path / "p.jsonl"), "raw_prompts": True}
    generate(generate_config(folder, tmp_path / "answers", rollouts_per_prompt=1, **raw))
    assert not rendered
    assert sorted(row["prompt_ids"] for row in read_rollouts(tmp_path / "answers")) == [[3, 6, 4, 14], [3, 7, 4, 14]]
    rollouts = {"rollouts": str(tmp_path / "answers")}
    annotate(annotate_config(folder, tmp_path / "labels", raw_prompts=True, **rollouts))
    with pytest.raises(DataError, match="was made with --raw-prompts, but this run has neither"):
        train(folder, tmp_path / "out", prompts=raw["prompts"], **rollouts)


def test_a_templated_prompt_without_raw_prompts_is_warned_about_once(folder, tmp_path, capsys):
    write_rows(tmp_path / "p.jsonl", [{"prompt": f"<user> w{i} <bot>"} for i in range(4)])
    words = ["--target", str(folder / "target"), "--output", str(tmp_path / "out"), "--max-new-tokens", "4"]
    assert main(["generate", *words, "--prompts", str(tmp_path / "p.jsonl"), "--rollouts-per-prompt", "1"]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("begins with '<user>'") == 1


# ---- the command line


@pytest.mark.parametrize("key", ["chat_template_kwargs", "chat-template-kwargs"])
def test_a_mapping_in_yaml_is_the_flags_json(folder, tmp_path, key):
    settings = {"target": str(folder / "target"), "output": str(tmp_path / "out"), "max_new_tokens": 4}
    settings |= {"prompts": str(folder / "prompts.jsonl"), "rollouts_per_prompt": 1, key: {"enable_thinking": False}}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert main(["generate", "--config", str(tmp_path / "settings.yaml")]) == 0
    assert {row["prompt_ids"][-1] for row in read_rollouts(tmp_path / "out")} == {DOES_NOT}
    # The run's own settings are such a file too.
    assert (
        main(["generate", "--config", str(tmp_path / "out" / "specdistill.yaml"), "--output", settings["output"]]) == 0
    )


@pytest.mark.parametrize("command", ["generate", "annotate", "init-draft", "train-draft", "bench"])
@pytest.mark.parametrize("given", ["enable_thinking=false", "[1]", '{"messages": []}'])
def test_bad_template_arguments_are_one_line_before_any_work(tmp_path, capsys, command, given):
    words = ["--target", "t", "--draft", "d", "--output", str(tmp_path / "out"), "--layers", "1"]
    kept = {"train-draft": words[:6], "bench": words[:4], "init-draft": words[:2] + words[4:]}
    chosen = kept.get(command, words[:2] + words[4:6])
    assert main([command, *chosen, f"--chat-template-kwargs={given}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--chat-template-kwargs" in line and "unexpected" not in line and not (tmp_path / "out").exists()


def test_python_takes_a_mapping_and_refuses_both_ways_at_once():
    assert any_config(chat_template_kwargs={"enable_thinking": False}) == any_config(**QUICK)
    assert any_config(chat_template_kwargs={"enable_thinking": False}).to_flat()["chat_template_kwargs"] == KWARGS
    with pytest.raises(ConfigError, match="leave --chat-template-kwargs away"):
        any_config(raw_prompts=True, **QUICK)


# ---- the report


@pytest.mark.parametrize(
    ("settings", "kept", "words"),
    [
        (QUICK, ("chat_template_kwargs", KWARGS), f"chat template arguments {KWARGS}"),
        ({"raw_prompts": True}, ("raw_prompts", True), "--raw-prompts"),
    ],
)
def test_the_report_says_how_prompts_were_rendered(folder, capsys, settings, kept, words):
    report = bench(bench_config(folder, **settings))
    key, value = kept
    assert report.to_json()["setup"][key] == value
    bench_tables(report)
    assert words in capsys.readouterr().out
    assert key in html_report(report)
    plain = bench(bench_config(folder))
    assert not {"chat_template_kwargs", "raw_prompts"} & set(plain.to_json()["setup"])
