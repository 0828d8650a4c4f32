"""Presets: which settings they set, when a run trains nothing, and the sentence that it ends with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_models import make_model, perturbed
from tiny_runs import any_config, before_each_step, history, same_weights, train, train_config, write_folder

from specdistill import TrainConfig, train_draft
from specdistill.distill.methods import METHODS
from specdistill.distill.presets import PRESETS, PresetSettings, preset_help, presets_table
from specdistill.distill.sequences.run_prompts import RunPrompts
from specdistill.distill.training.start import MadeFor, gain_sentence, made_for, reason_to_leave
from specdistill.errors import ConfigError
from specdistill.evaluation.statistics import Estimate
from specdistill.progress import Quiet
from specdistill.report.distill import training_table
from specdistill.settings.parts import defaults

ROOT = Path(__file__).parents[2]
ADAPT = PRESETS["adapt"].settings
MILD = {"preset": "adapt", "heldout_prompts": 8, "max_new_tokens": 12, "learning_rate": 3e-3}


class Log(Quiet):
    """Keeps what a run says."""

    def __init__(self):
        self.lines: list[str] = []

    def say(self, text):
        self.lines.append(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    target = make_model(layers=2)
    models = {"target": target, "draft": make_model(layers=1, seed=9), "twin": perturbed(target, 0.0005)}
    return write_folder(tmp_path_factory.mktemp("presets"), models)


# ---- which settings


def test_a_preset_sets_settings_that_exist_to_other_values_than_the_defaults():
    known = defaults(TrainConfig)
    for preset in PRESETS.values():
        assert all(known[name] != value for name, value in preset.settings.items())


def test_help_and_docs_are_made_of_the_table():
    assert "--steps 100" in preset_help() and "--enough-alpha 0.95" in preset_help()
    text = (ROOT / "docs/methods.md").read_text()
    assert text.split("<!-- presets -->\n")[1].split("\n<!-- /presets -->")[0] == presets_table()


@pytest.mark.parametrize("method", METHODS)
def test_a_preset_goes_with_every_method_and_leaves_out_what_one_does_not_take(method):
    needed = {"online": "log"} if method == "online" else {}
    flat = any_config(method=method, preset="adapt", **needed).to_flat()
    takes = "target_fraction" in METHODS[method].settings
    for place in METHODS[method].places:
        where = {"memory": {}, "stored": {"soft_labels": "labels"}, "served": {"target_server": "http://h:1"}}[place]
        any_config(method=method, preset="adapt", **needed, **where)
    expected = dict(ADAPT) | ({} if takes else {"target_fraction": None})
    assert {name: flat[name] for name in ADAPT} == expected


def test_what_the_user_sets_wins_even_at_its_default():
    config = any_config(preset="adapt", steps=300, patience=7)
    assert (config.optimiser.steps, config.evaluation.patience, config.evaluation.eval_every) == (300, 7, 20)
    # The settings that a run writes down repeat it.
    again = TrainConfig.flat(**yaml.safe_load(yaml.safe_dump(config.to_flat())))
    assert again == config and any_config().optimiser.steps == 300


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"preset": "fast"}, "unknown --preset 'fast'; choose one of none, adapt"),
        ({"enough_alpha": 1.5}, "--enough-alpha must be in"),
        ({"tolerated_drop": -0.1}, "--tolerated-drop must be in"),
        ({"preset": "adapt", "reward": "m:f"}, "--target-fraction 1 .*--preset adapt sets.*--reward .*lower it"),
    ],
)
def test_settings_that_cannot_be(settings, text):
    with pytest.raises(ConfigError, match=text):
        any_config(**settings)
    assert any_config(preset="adapt", reward="m:f", target_fraction=0.5)


# ---- when nothing is trained


def test_the_criteria_by_hand():
    both = PresetSettings(preset="adapt", enough_alpha=0.95, tolerated_drop=0.02)
    made = MadeFor("old", 0.60)

    def reason(mean, low, high, settings=both, before=made):
        return reason_to_leave(Estimate(mean, low, high), "alpha (sampled)", settings, before)

    assert "is 0.970 [0.960, 0.980] before any training, which is enough" in reason(0.97, 0.96, 0.98)
    assert reason(0.96, 0.94, 0.98, before=None) is None, "the whole interval must be above"
    assert "was 0.600 on the same prompts against old" in reason(0.58, 0.55, 0.61)
    assert reason(0.579, 0.55, 0.61) is None and reason(0.58, 0.55, 0.61, before=None) is None
    assert reason(0.58, float("nan"), float("nan")) is None, "too few prompts decide nothing"
    assert reason(0.97, 0.96, 0.98, PresetSettings()) is None and not PresetSettings().judges_start


def test_a_draft_that_is_good_enough_is_left_as_it_is(tiny, tmp_path, monkeypatch, capsys):
    before_each_step(monkeypatch, lambda step, examples: pytest.fail("a step was trained"))
    log = Log()
    settings = MILD | {"draft": str(tiny / "twin"), "enough_alpha": 0.9}
    summary = train_draft(train_config(tiny, tmp_path / "out", **settings), log)
    assert summary.steps == 0 and summary.kept_step == 0 and len(history(tmp_path / "out")) == 1
    assert same_weights(tmp_path / "out", tiny / "twin") and summary.before == summary.after
    assert (
        summary.verdict.startswith("nothing to adapt: held-out alpha (sampled) is 1.000 [0.999, 1.000]")
        and summary.verdict in log.lines
    )
    # The target has answered the held-out prompts, and written nothing to train on.
    assert (tmp_path / "out/heldout").is_dir() and not (tmp_path / "out/rollouts").exists()
    assert "Preset `adapt`. Nothing to adapt: " in (tmp_path / "out/README.md").read_text()
    assert json.loads((tmp_path / "out/summary.json").read_text())["verdict"] == summary.verdict
    training_table(summary)
    printed = capsys.readouterr().out
    assert summary.verdict in printed and "Training found nothing" not in printed
    assert "step 0 of 0 kept: the start; nothing was trained" in printed


def test_the_same_draft_is_trained_where_nobody_asked(tiny, tmp_path):
    summary = train(tiny, tmp_path / "out", draft=str(tiny / "twin"), steps=2, eval_every=2)
    assert summary.steps == 2 and summary.verdict is None and summary.preset == "none"
    assert "Preset" not in (tmp_path / "out/README.md").read_text()


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A draft that was trained for the target, and two fine-tunes of it: a mild one, and another model."""
    folder = tmp_path_factory.mktemp("made")
    train(tiny, folder / "draft", steps=40, eval_every=20, heldout_prompts=8, rule="greedy")
    write_folder(folder, {"mild": perturbed(make_model(layers=2), 0.001), "other": make_model(layers=2, seed=5)})
    return folder


def adapted(tiny, made, output, target, **settings):
    log = Log()
    given = MILD | {"target": str(made / target), "draft": str(made / "draft"), "rule": "greedy"} | settings
    return train_draft(train_config(tiny, output, **given), log), "\n".join(log.lines)


def test_a_mild_fine_tune_costs_nothing(tiny, made, tmp_path):
    before = json.loads((made / "draft/summary.json").read_text())["after"]["greedy"]
    summary, said = adapted(tiny, made, tmp_path / "out", "mild", tolerated_drop=0.1)
    assert summary.steps == 0 and abs(summary.before["greedy"] - before) < 0.1
    assert f"was {before:.3f} on the same prompts against {tiny / 'target'}" in summary.verdict
    assert said.startswith("preset adapt: ") and "set by you: " in said.splitlines()[0]


def test_a_heavy_one_is_trained_for(tiny, made, tmp_path):
    before = json.loads((made / "draft/summary.json").read_text())["after"]["greedy"]
    summary, said = adapted(tiny, made, tmp_path / "out", "other", steps=40, eval_every=20)
    assert f"before training: {summary.before['greedy']:.3f} [" in said
    assert f"against {tiny / 'target'}, which it was made for, {before:.3f}" in said
    assert summary.steps == 40 and summary.before["greedy"] < before - 0.02
    assert summary.verdict.startswith("adapted: ") and f"{summary.gain['greedy'].mean:+.3f}" in summary.verdict


@pytest.mark.parametrize(
    "changes",
    [{"temperature": 0.7}, {"heldout_prompts": 7}, {"max_new_tokens": 10}, {"chat_template_kwargs": {"tone": "dry"}}],
)
def test_a_record_of_other_answers_says_nothing(tiny, made, changes):
    def found(**settings):
        config = train_config(tiny, Path("o"), **{"heldout_prompts": 8} | settings)
        prompts = RunPrompts.read(config.prompts, config.chat, config.sequences, config.place, config.context)
        return made_for(str(made / "draft"), config.to_flat(), prompts.hash, "greedy")

    after = json.loads((made / "draft/summary.json").read_text())["after"]
    assert after["greedy"] != after["sampled"]
    assert found() == MadeFor(str(tiny / "target"), after["greedy"])
    assert found(**changes) is None


def test_a_draft_of_another_tool_or_damaged_files_have_no_record(tiny, made, tmp_path):
    flat = train_config(tiny, Path("o")).to_flat()
    assert made_for("owner/name", flat, "", "sampled") is None
    assert made_for(str(tiny / "draft"), flat, "", "sampled") is None
    for name in ("specdistill.yaml", "prompts.sha256"):
        (tmp_path / name).write_bytes((made / "draft" / name).read_bytes())
    hashed = (tmp_path / "prompts.sha256").read_text().strip()
    flat = yaml.safe_load((tmp_path / "specdistill.yaml").read_text())
    for content in ("{", "[]", '{"after": {}}', '{"after": {"sampled": null}}'):
        (tmp_path / "summary.json").write_text(content)
        assert made_for(str(tmp_path), flat, hashed, "sampled") is None
    (tmp_path / "summary.json").write_text('{"after": {"sampled": 0.5}}')
    assert made_for(str(tmp_path), flat, hashed, "sampled") == MadeFor(str(tiny / "target"), 0.5)


# ---- the plain answer


def test_the_sentence_by_hand():
    start, none = Estimate(0.40, 0.38, 0.42), Estimate(0.01, float("nan"), float("nan"))

    def sentence(gain, low_is_good=False):
        return gain_sentence(start, 0.45, gain, "alpha (sampled)", 60, low_is_good=low_is_good)

    numbers = "held-out alpha (sampled) 0.400 [0.380, 0.420] before, 0.450 after 60 steps"
    up, down = Estimate(0.05, 0.03, 0.07), Estimate(-0.05, -0.07, -0.03)
    assert sentence(up) == f"adapted: {numbers}, paired difference +0.050 [+0.030, +0.070]"
    assert sentence(down).startswith("nothing gained: ") and sentence(up, True).startswith("nothing gained: ")
    assert sentence(down, True).startswith("adapted: ")
    assert sentence(Estimate(0.01, -0.01, 0.03)).startswith(f"nothing gained: {numbers}")
    assert sentence(none) == f"undecided: {numbers}; an interval needs more --heldout-prompts"
