"""The table of methods makes the refusals, the help and the documentation: all of them say the same."""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from specdistill import TrainConfig
from specdistill.distill.methods import METHOD_SETTINGS, METHODS, method_help, methods_table
from specdistill.distill.target.place import InMemory, Served, Stored
from specdistill.distill.training.loss_settings import LossSettings
from specdistill.errors import ConfigError
from specdistill.settings.parts import defaults
from specdistill_kernels.fused_divergence import KINDS

ROOT = Path(__file__).parents[2]
CHANGED = {
    "divergence": "rkl",
    "text_block": 64,
    "text": "documents.txt",
    "rollouts": "answers",
    "score_threshold": 0.5,
    "keep_correct": True,
    "strict_scorer": "exact-match",
    "lmbda": 0.25,
    "target_fraction": 0.3,
    "skd_top_k": 7,
    "skd_num_draft_tokens": 2,
    "skd_target_temperature": 0.2,
    "skd_target_top_p": 0.5,
    "online": "log",
    "online_wait": 5.0,
    "reward": "rewards:length",
    "distill_weight": 0.1,
    "rollout_engine": "vllm",
    "push_every": 3,
    "engine_memory": 0.5,
    "capture_steps": True,
    "ce_weight": 0.2,
    "reference": "other-draft",
    "guidance": 0.5,
    "target_system": "system.txt",
    "target_examples": "examples.jsonl",
    "target_hint": "it is {answer}",
}
"""A value of each setting that not every method takes."""
TOGETHER = {"guidance": {"negative_prompt": "be rude"}, "text_block": {"text": "documents.txt"}}
WITHOUT_EFFECT_ALONE = {
    "distill_weight": {"reward": "rewards:length"},
    "push_every": {"rollout_engine": "vllm"},
    "engine_memory": {"rollout_engine": "vllm"},
    **{name: {"scorer": "rewards:length"} for name in ("score_threshold", "keep_correct", "strict_scorer")},
}
PLACES = {"stored": {"soft_labels": "labels"}, "served": {"target_server": "http://host:8000"}}


def config(method: str, **settings) -> TrainConfig:
    needed = {"online": "log"} if method == "online" else {}
    return TrainConfig.flat(target="t", draft="d", output="o", method=method, **(needed | settings))


def test_every_setting_of_the_table_is_one_of_the_configuration():
    assert set(CHANGED) == set(METHOD_SETTINGS) <= set(defaults(TrainConfig))
    assert set().union(*(method.settings for method in METHODS.values())) == set(METHOD_SETTINGS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("setting", METHOD_SETTINGS)
def test_a_setting_is_taken_or_refused_by_name(method, setting):
    settings = {setting: CHANGED[setting]} | TOGETHER.get(setting, {})
    flag = "--" + setting.replace("_", "-")
    if setting in METHODS[method].settings:
        if setting in ("reference", "ce_weight") and METHODS[method].loss != "fkl":
            # AdaSPEC selects for forward KL only, and cross entropy alone has nothing to be mixed into.
            settings["divergence"] = "fkl"
        config(method, **settings | WITHOUT_EFFECT_ALONE.get(setting, {}))
        return
    with pytest.raises(ConfigError, match=rf"{flag} .*goes with --method .*not with {method}") as error:
        config(method, **settings)
    for name in METHODS:
        assert (re.search(rf"[ ,]{name}[ ,]", str(error.value).split("not with")[0]) is not None) == (
            setting in METHODS[name].settings
        )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("place", PLACES)
def test_a_place_of_the_target_is_taken_or_refused_by_name(method, place):
    if place in METHODS[method].places:
        assert config(method, **PLACES[place]).place.name == place
        return
    with pytest.raises(ConfigError, match=rf"goes with --method .*, not with {method}"):
        config(method, **PLACES[place])


def test_a_place_is_a_value_parsed_from_the_settings():
    assert config("gkd", target_memory="int8").place == InMemory("int8")
    assert config("distillspec", soft_labels="labels").place == Stored(Path("labels"))
    served = config("gkd", target_server="http://h:1", server_top_k=9, server_concurrency=2, server_patience=3.0).place
    assert served == Served("http://h:1", None, top_k=9, concurrency=2, patience=3.0)


def test_the_loss_of_each_method():
    losses = {name: config(name).objective.kind for name in METHODS}
    assert losses == {
        "sft": "ce",
        "seqkd": "ce",
        "best-of-n": "ce",
        "supervised-kd": "fkl",
        "gkd": "jsd",
        "distillspec": "fkl",
        "skd": "fkl",
        "online": "fkl",
    }
    assert config("gkd", reward="rewards:length").objective.kind == "rkl"
    assert config("best-of-n", divergence="tvd").objective.kind == "tvd"


def test_the_divergences_of_the_command_line_are_those_of_the_kernels():
    """The configuration must stay free of torch, so it repeats the names."""
    names = typing.get_args(typing.get_type_hints(LossSettings)["divergence"])
    assert set(names) - {"auto"} == set(KINDS) - {"ce"}
    assert {method.loss for method in METHODS.values()} <= set(KINDS)


def test_parts_are_arguments_and_flat_names_make_the_same_configuration():
    flat = config("gkd", beta=0.3, steps=7, temperature=0.5, dtype="float16")
    base = TrainConfig(target="t", draft="d", output="o", method="gkd")
    nested = TrainConfig(
        target="t",
        draft="d",
        output="o",
        method="gkd",
        loss=dataclasses.replace(base.loss, beta=0.3),
        optimiser=dataclasses.replace(base.optimiser, steps=7),
        sampling=dataclasses.replace(base.sampling, temperature=0.5),
        target_settings=dataclasses.replace(base.target_settings, dtype="float16"),
    )
    assert flat == nested and TrainConfig.flat(**flat.to_flat()) == flat
    assert flat.replace(steps=9).optimiser.steps == 9 and flat.optimiser.steps == 7
    with pytest.raises(ConfigError, match="no setting 'temprature'; did you mean temperature"):
        config("gkd", temprature=1.0)


def test_help_and_documentation_are_the_tables():
    page = (ROOT / "docs/methods.md").read_text()
    assert page.split("<!-- methods -->\n")[1].split("\n<!-- /methods -->")[0] == methods_table()
    for name, method in METHODS.items():
        assert f"{name}: " in method_help() and method.text in method_help()
