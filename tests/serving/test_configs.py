"""Configurations made of parts are flat on the command line and in YAML; engines are one table."""

from __future__ import annotations

import re
import typing

import pytest

from specdistill import AdviseConfig, BenchConfig, CarryHeadConfig, CheckConfig, ExportConfig, PlanConfig
from specdistill.cli import app
from specdistill.errors import ConfigError
from specdistill.evaluation.config import AcceptanceSettings
from specdistill.serving.engine_table import ENGINES

BENCH = {
    "method": "draft", "engine_baselines": ["ngram"], "draft_kv": None, "compare_kv": [],
    "lookup_max": 4, "lookup_min": 2,
    "engine": "specdistill", "url": None, "baseline_url": None, "server_model": None, "server_patience": 60.0,
    "server_timeout": 300.0, "engine_args": "", "compare": [], "prompts": "builtin:heldout", "num_prompts": 32,
    "latency_prompts": 0, "max_new_tokens": 128, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
    "rule": "auto", "lenience": 1.0, "num_draft_tokens": 0, "max_draft_tokens": 8, "draft_length": "fixed",
    "confidence": 0.4, "one_by_one": False, "batch_size": 1, "seed": 0, "capture_steps": False, "device": "auto",
    "dtype": "auto",
    "pack": "none", "threads": 0, "json": None, "html": None,
    "chat_template_kwargs": None, "raw_prompts": False, "guidance": 0.0,
    "negative_prompt": None, "scorer": None, "lenience_sweep": [], "show": 0,
    "baselines": "best",
    "batch_sizes": [], "concurrency": [],
    "target_base": None, "compare_target": None,
    "self_system": None, "self_temperature": 0.8, "self_top_p": 1.0, "self_max_tokens": None, "self_seed": 0,
}  # fmt: skip
PLAN = {
    "draft_layers": 0, "draft_width": 0, "dtype": "bfloat16", "vocab_size": 128256, "target_resident_params": None,
    "experts": 0, "experts_per_token": 0, "target_width": 0, "unroll": 3, "head_ids": 8192,
    "prompts": 50000, "rollouts_per_prompt": 4, "prompt_tokens": 300, "answer_tokens": 400, "epochs": 2.0,
    "on_policy_fraction": 0.0, "labels": "live", "label_top_k": 64, "batch_size": 64, "micro_batch_size": 8,
    "parallel": 0, "parallel_keep": 0.5, "parallel_keep_least": 0.1,
    "gpus": 8, "gpu": "h100", "gpu_tflops": 0.0, "gpu_bandwidth": 0.0, "gpu_memory": 0.0, "utilisation": 0.4,
    "decode_batch": 64, "decode_utilisation": 0.6, "json": None,
}  # fmt: skip
ADVISE = {
    "prompts": "builtin:heldout", "answers": "target", "num_prompts": 24, "max_new_tokens": 128,
    "training_minutes": 60.0, "json": None, "target_base": None, "chat_template_kwargs": None, "raw_prompts": False,
    "self_system": None, "self_temperature": 0.8, "self_top_p": 1.0, "self_max_tokens": None, "self_seed": 0,
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "rule": "auto", "max_draft_tokens": 8,
    "cut_layers": [2, 4], "vocab_keep": 8192, "parallel": 8, "unroll": 3, "batch_size": 1, "seed": 0, "dtype": "auto",
    "device": "auto", "threads": 0,
}  # fmt: skip
COMMANDS = {
    "bench": (BenchConfig, {"target": "t", "draft": "d"}, BENCH),
    "advise": (AdviseConfig, {"target": "t"}, ADVISE),
    "plan": (PlanConfig, {"target_params": "70B", "draft_params": "1B"}, PLAN),
    "check": (
        CheckConfig,
        {"target": "t"},
        {
            "draft": None,
            "max_model_len": 0,
            "tensor_parallel": 1,
            "num_draft_tokens": 0,
            "json": None,
            "target_base": None,
        },
    ),
    "carry-head": (CarryHeadConfig, {"base": "b", "target": "t", "output": "o"}, {}),
    "export": (
        ExportConfig,
        {"target": "t", "draft": "d", "format": "vllm", "output": "o"},
        {"type": "auto", "target_gguf": None, "merged_target": None, "target_base": None},
    ),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_flat_settings_and_their_defaults(command):
    """Names and defaults of users' YAML files and scripts."""
    config, required, defaults = COMMANDS[command]
    assert config.flat(**required).to_flat() == required | defaults


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_reaches_its_setting_and_leaves_the_others(command, monkeypatch):
    """A part of which one flag is given keeps its own defaults for the rest."""
    # Another test's --config stays in the application after `main`.
    monkeypatch.setattr(app, "config", [])
    config, required, defaults = COMMANDS[command]
    other = {"max_draft_tokens": 9, "dtype": "float32", "threads": 3, "max_model_len": 9, "label_top_k": 7}
    other |= {"type": "float16"}
    given = {name: value for name, value in other.items() if name in defaults}
    words = [word for name, value in (required | given).items() for word in ("--" + name.replace("_", "-"), str(value))]
    _, bound, _ = app.parse_args([command, *words], exit_on_error=False, print_error=False)
    assert bound.arguments["config"].to_flat() == required | defaults | given
    assert isinstance(bound.arguments["config"], config)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_first_box_of_the_help_is_short(command, capsys):
    config, required, defaults = COMMANDS[command]
    app([command, "--help"], exit_on_error=False, print_error=False, result_action="return_value")
    boxes = capsys.readouterr().out.split("╭─ ")[1:]
    assert boxes[0].startswith("Essentials") and len(re.findall(r"^│ [ *]* --", boxes[0], re.MULTILINE)) in range(3, 11)
    assert len(boxes) == 1 + sum(
        hasattr(kind, "__dataclass_fields__") for kind in typing.get_type_hints(config).values()
    )
    assert all("--" + name.replace("_", "-") in "".join(boxes) for name in required | defaults)


def test_the_engines_of_the_table_are_the_choices():
    assert typing.get_args(typing.get_type_hints(BenchConfig)["engine"]) == tuple(ENGINES)
    rules = set(typing.get_args(typing.get_type_hints(AcceptanceSettings)["rule"]))
    for name, kind in ENGINES.items():
        assert kind.rules[0] == "greedy" and len(kind.rules) > 1 and set(kind.rules) < rules, name
        assert (kind.place == "started") == bool(kind.launcher)


@pytest.mark.parametrize("name", [name for name, kind in ENGINES.items() if kind.launcher])
def test_launchers_have_what_the_table_promises(name):
    module = ENGINES[name].launcher_module()
    assert all(callable(getattr(module, function)) for function in ("check_installed", "command", "environment"))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_accepts_by_its_second_rule_above_temperature_zero(engine):
    names = {"target": "t.gguf", "draft": "d.gguf", "num_draft_tokens": 2, "engine": engine}
    if engine == "openai-server":
        names |= {"url": "http://x", "baseline_url": "http://y"}
    assert BenchConfig.flat(**names).served_rule == "greedy"
    sampling = BenchConfig.flat(**names, temperature=0.5)
    assert sampling.served_rule == ENGINES[engine].rules[1] == sampling.predicting_rule
    last = ENGINES[engine].rules[-1]
    if last != "lenient":
        assert BenchConfig.flat(**names, temperature=0.5, rule=last).served_rule == last


def test_settings_of_no_part_are_refused_with_a_hint():
    with pytest.raises(ConfigError, match="did you mean num_draft_tokens"):
        BenchConfig.flat(target="t", draft="d", num_draft_token=3)
