"""Flags and YAML keys of every command: flat, with the defaults that they had before settings were put in parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from cyclopts import App
from flag_table import flag_table

from specdistill import AnnotateConfig, BenchConfig, ExportConfig, PlanConfig, TrainConfig
from specdistill.cli import app, main
from specdistill.errors import ConfigError

TABLE = json.loads((Path(__file__).parent / "flags.json").read_text())
REQUIRED = {
    "advise": {"target": "t"},
    "annotate": {"target": "t", "output": "o"},
    "bench": {"target": "t", "draft": "d"},
    "carry-head": {"base": "b", "target": "t", "output": "o"},
    "check": {"target": "t"},
    "export": {"target": "t", "draft": "d", "output": "o", "format": "vllm"},
    "generate": {"target": "t", "output": "o"},
    "init-draft": {"target": "t", "output": "o", "layers": 3},
    "plan": {"target_params": "70B", "draft_params": "1B"},
    "train-draft": {"target": "t", "draft": "d", "output": "o"},
}
GGUF = {"engine": "llama-cpp", "target": "t.gguf", "draft": "d.gguf"}
SERVED = {"engine": "openai-server", "url": "http://h:1/v1", "baseline_url": "http://h:2/v1", "num_draft_tokens": 3}
CARD = {"gpu": "custom", "gpu_tflops": 500.0, "gpu_bandwidth": 2000.0, "gpu_memory": 64.0}
# Settings that need others beside them, or one value among few.
TOGETHER = {
    "advise": {
        "cut_layers": {"cut_layers": [3, 5]},
        "rule": {"rule": "sampled", "temperature": 1.0},
        "top_k": {"top_k": 1, "temperature": 1.0},
        "top_p": {"top_p": 0.5, "temperature": 1.0},
        "min_p": {"min_p": 0.5, "temperature": 1.0},
    },
    "annotate": {
        "text_block": {"text": "x.txt", "text_block": 64},
        "draws": {"draws": 65, "labels": "sampled"},
        "features": {"features": "bfloat16"},
        "feature_layers": {"feature_layers": [1, 2, 3], "features": "auto"},
        "ray_workers": {"ray_workers": 2, "ray": "local"},
    },
    "bench": {
        "lenience_sweep": {"lenience_sweep": [0.5, 0.25], "temperature": 1.0},
        "batch_sizes": {"batch_sizes": [1, 4]},
        "compare": {"compare": ["a", "b"]},
        "concurrency": SERVED | {"concurrency": [1, 4]},
        "guidance": {"guidance": 0.5, "negative_prompt": "no"},
        "negative_prompt": {"guidance": 0.5, "negative_prompt": "no"},
        "engine": {"engine": "transformers"},
        "method": GGUF | {"method": "ngram+draft"},
        "engine_baselines": {"engine": "vllm", "engine_baselines": ["ngram", "suffix"]},
        "draft_kv": GGUF | {"draft_kv": "q8_0"},
        "compare_kv": GGUF | {"compare_kv": ["q8_0", "q4_0"]},
        "lookup_max": {"engine": "vllm", "lookup_max": 5},
        "lookup_min": {"engine": "vllm", "lookup_min": 3},
        "url": SERVED,
        "baseline_url": SERVED,
        "server_model": SERVED | {"server_model": "m"},
        "engine_args": {"engine": "vllm", "engine_args": "--enforce-eager"},
        "scorer": {"scorer": "number"},
        "rule": {"rule": "block", "temperature": 1.0},
        "lenience": {"rule": "lenient", "lenience": 0.5, "temperature": 1.0},
        "confidence": {"confidence": 0.2, "draft_length": "confidence"},
        "server_patience": SERVED | {"server_patience": 30.0},
        "server_timeout": SERVED | {"server_timeout": 150.0},
        "top_k": {"top_k": 1, "temperature": 1.0},
        "top_p": {"top_p": 0.5, "temperature": 1.0},
        "min_p": {"min_p": 0.5, "temperature": 1.0},
    },
    "export": {
        "format": {"format": "gguf", "output": "o.gguf", "target": "t.gguf"},
        "output": {"output": "elsewhere"},
        "type": {"type": "float16"},
        "target_gguf": {"format": "gguf", "output": "o.gguf", "target_gguf": "t.gguf"},
    },
    "init-draft": {
        "layers": {"layers": 4},
        "kind": {"kind": "eagle3", "layers": None},
        "own_embedding": {"own_embedding": True, "kind": "eagle3", "layers": None},
    },
    "generate": {
        "match": {"match": "cost", "other": "x", "target_price": 2.0, "other_price": 1.0},
        "scorer": {"scorer": "number"},
        "score_threshold": {"scorer": "m:f", "score_threshold": 0.5},
        "strict_scorer": {"scorer": "m:f", "strict_scorer": "exact-match"},
        "target_price": {"match": "cost", "other": "x", "target_price": 2.0, "other_price": 1.0},
        "other_price": {"match": "cost", "other": "x", "target_price": 2.0, "other_price": 1.0},
        "engine_memory": {"rollout_engine": "vllm", "engine_memory": 0.5},
        "ray_workers": {"ray_workers": 2, "ray": "local"},
        "top_p": {"top_p": 0.9},
    },
    "plan": {
        "parallel": {"parallel": 8},
        "parallel_keep": {"parallel": 8, "parallel_keep": 0.7},
        "parallel_keep_least": {"parallel": 8, "parallel_keep_least": 0.2},
        "gpu": CARD,
        "gpu_tflops": CARD,
        "gpu_bandwidth": CARD,
        "gpu_memory": CARD,
        "target_params": {"target_params": "30B"},
        "draft_params": {"draft_params": "500M"},
        "target_resident_params": {"target_resident_params": "200B"},
        "experts": {"experts": 8, "experts_per_token": 2, "target_resident_params": "200B"},
        "experts_per_token": {"experts": 8, "experts_per_token": 2, "target_resident_params": "200B"},
        "on_policy_fraction": {"on_policy_fraction": 0.5},
        "labels": {"labels": "stored", "on_policy_fraction": 0.0},
    },
    "train-draft": {
        "beta": {"beta": 0.25, "divergence": "jsd"},
        "eta": {"eta": 1.5, "divergence": "lk_lambda"},
        "select_fraction": {"select_fraction": 0.2, "reference": "x"},
        "server_model": {"server_model": "m", "target_server": "http://h:1/v1"},
        "server_top_k": {"server_top_k": 21, "target_server": "http://h:1/v1"},
        "server_concurrency": {"server_concurrency": 9, "target_server": "http://h:1/v1"},
        "server_patience": {"server_patience": 300.0, "target_server": "http://h:1/v1"},
        "distill_weight": {"distill_weight": 0.25, "reward": "m:f"},
        "divergence": {"divergence": "rkl"},
        "method": {"method": "gkd"},
        "text": {"text": "x.txt", "method": "sft"},
        "text_block": {"text": "x.txt", "method": "sft", "text_block": 64},
        "soft_labels": {"soft_labels": "x"},
        "target_server": {"target_server": "http://h:1/v1"},
        "guidance": {"guidance": 0.5, "negative_prompt": "no"},
        "negative_prompt": {"guidance": 0.5, "negative_prompt": "no"},
        "online": {"online": "log", "method": "online"},
        "checkpoint_every": {"checkpoint_every": 50},
        "shard": {"shard": "draft"},
        "reward": {"reward": "m:f"},
        "report_to": {"report_to": ["tensorboard", "mlflow"]},
        "target_fraction": {"target_fraction": 0.5},
        "rollout_engine": {"rollout_engine": "vllm"},
        "engine_memory": {"rollout_engine": "vllm", "engine_memory": 0.5},
        "push_every": {"rollout_engine": "vllm", "push_every": 2},
        "lmbda": {"lmbda": 0.25, "method": "gkd"},
        "online_wait": {"online_wait": 30.0, "online": "log", "method": "online"},
        "scorer": {"scorer": "exact-match", "method": "best-of-n"},
        "score_threshold": {"scorer": "m:f", "method": "best-of-n", "score_threshold": 0.5},
        "keep_correct": {"scorer": "m:f", "method": "best-of-n", "keep_correct": True},
        "strict_scorer": {"scorer": "m:f", "method": "best-of-n", "strict_scorer": "exact-match"},
        "skd_top_k": {"skd_top_k": 9, "method": "skd"},
        "skd_num_draft_tokens": {"skd_num_draft_tokens": 4, "method": "skd"},
        "skd_target_temperature": {"skd_target_temperature": 0.2, "method": "skd"},
        "skd_target_top_p": {"skd_target_top_p": 0.5, "method": "skd"},
        "parallel": {"parallel": 8},
        "mask_token": {"parallel": 8, "mask_token": 7},
        "anchors": {"parallel": 8, "anchors": "rounds"},
        "parallel_keep": {"parallel": 8, "parallel_keep": 0.7},
        "parallel_keep_least": {"parallel": 8, "parallel_keep_least": 0.2},
        "parallel_weights": {"parallel": 8, "parallel_weights": 0.5},
        "parallel_confidence": {"parallel": 8, "parallel_confidence": True},
    },
}
SELF_SETTINGS = {
    "self_system": "s.txt",
    "self_temperature": 0.5,
    "self_top_p": 0.5,
    "self_max_tokens": 30,
    "self_seed": 1,
}
TEMPLATE = {"chat_template_kwargs": '{"enable_thinking": false}'}
for encoding in ("advise", "annotate", "bench", "generate", "init-draft", "train-draft"):
    TOGETHER.setdefault(encoding, {})["chat_template_kwargs"] = TEMPLATE
    # Raw text that is labelled has no prompts; stored answers whose prompts the target sees more of do.
    seen = {"rollouts": "r", "target_system": "s.txt"} if encoding == "annotate" else {}
    for name, value in SELF_SETTINGS.items():
        TOGETHER[encoding][name] = {name: value, "prompts": "self:10"} | seen
# A choice of three: left out, --packing and --packing=false.
TOGETHER["train-draft"]["packing"] = {"packing": True}
for seeing in ("annotate", "generate", "train-draft"):
    TOGETHER[seeing]["target_hint"] = {"target_hint": "it is {answer}"}
CASES = [(command, flag) for command, flags in TABLE.items() for flag in flags]


def another_value(entry):
    """A value that is not the default and that no check refuses."""
    default = entry.get("default")
    if "choices" in entry:
        return next(choice for choice in entry["choices"] if choice != default)
    if isinstance(default, bool):
        return not default
    if isinstance(default, int):
        return default + 1
    if isinstance(default, float):
        return default / 2 if default else 0.5
    return "another"


def settings_for(command, flag):
    key = flag.removeprefix("--").replace("-", "_")
    together = TOGETHER.get(command, {}).get(key) or {key: another_value(TABLE[command][flag])}
    # None takes a required setting away.
    return key, {name: value for name, value in (REQUIRED[command] | together).items() if value is not None}


def as_flags(settings):
    words = []
    for key, value in settings.items():
        flag = f"--{key.replace('_', '-')}"
        for item in value if isinstance(value, list) else [value]:
            words.append(flag if item is True else f"{flag}={item}")
    return words


@pytest.fixture
def parse(monkeypatch, tmp_path, capsys):
    """Parses a command as `main` does, and returns its configuration instead of running it."""
    configs = []

    def record(self, tokens, **options):
        _, bound, _ = self.parse_args(tokens, exit_on_error=False, print_error=False)
        configs.append(bound.arguments["config"])

    monkeypatch.setattr(App, "__call__", record)

    def parse(command, *words, file=None):
        if file is not None:
            (tmp_path / "settings.yaml").write_text(yaml.safe_dump(file))
            words = (*words, "--config", str(tmp_path / "settings.yaml"))
        code = main([command, *words])
        assert code == 0, capsys.readouterr().err
        return configs.pop()

    return parse


def test_every_command_has_the_flags_and_defaults_it_had():
    assert json.loads(json.dumps(flag_table(app))) == TABLE


@pytest.mark.parametrize(("command", "flag"), CASES, ids=[f"{command} {flag}" for command, flag in CASES])
def test_a_setting_is_a_flag_and_a_flat_key(parse, command, flag):
    key, settings = settings_for(command, flag)
    from_file = parse(command, file=settings)
    assert from_file == parse(command, *as_flags(settings))
    flat = from_file.to_flat()
    assert flat[key] == settings[key] and flat[key] != TABLE[command][flag].get("default")


@pytest.mark.parametrize("command", TABLE)
def test_flags_win_over_the_file(parse, command):
    overridden = {key: f"flag-{value}" for key, value in REQUIRED[command].items() if key in ("target", "draft")}
    overridden = overridden or {"target_params": "30B"}
    flat = parse(command, *as_flags(overridden), file=REQUIRED[command]).to_flat()
    assert {key: flat[key] for key in REQUIRED[command]} == REQUIRED[command] | overridden


@pytest.mark.parametrize(
    ("config", "command", "settings", "known"),
    [
        (TrainConfig, "train-draft", {"divergence": "forward_kl"}, "auto, fkl, rkl"),
        (TrainConfig, "train-draft", {"method": "kd"}, "supervised-kd"),
        (PlanConfig, "plan", {"labels": "kept"}, "stored"),
        (AnnotateConfig, "annotate", {"features": "int8"}, "bfloat16"),
        (ExportConfig, "export", {"format": "onnx"}, "sglang"),
        (BenchConfig, "bench", {"engine": "vllm", "engine_baselines": ["ngram", "medusa"]}, "suffix"),
    ],
)
def test_a_value_of_no_list_is_refused_in_python_too(config, command, settings, known):
    """The command line knows the lists; from Python an unknown divergence was a traceback at the first step."""
    *_, wrong = settings
    value = settings[wrong][-1] if isinstance(settings[wrong], list) else settings[wrong]
    with pytest.raises(ConfigError) as refused:
        config.flat(**REQUIRED[command] | settings)
    assert str(refused.value).startswith(f"--{wrong.replace('_', '-')} must be one of ")
    assert known in str(refused.value) and str(refused.value).endswith(f"got {value!r}")


def test_a_preset_fills_in_what_neither_flags_nor_the_file_set(parse):
    needed = REQUIRED["train-draft"]
    config = parse("train-draft", *as_flags(needed), "--preset", "adapt")
    assert config == TrainConfig.flat(**needed, preset="adapt") and config.optimiser.steps == 100
    # A flag at its own default is a flag, and a line of the file a setting.
    config = parse("train-draft", "--steps=300", file=needed | {"preset": "adapt", "patience": 9})
    assert config == TrainConfig.flat(**needed, preset="adapt", steps=300, patience=9)
    assert (config.optimiser.steps, config.evaluation.patience, config.evaluation.eval_every) == (300, 9, 20)
    config = parse("train-draft", *as_flags(needed), "--preset=adapt", "--method=seqkd")
    assert config.sequences.target_fraction is None and config.optimiser.steps == 100
    assert parse("train-draft", "--preset=none", file=needed | {"preset": "adapt"}) == TrainConfig.flat(**needed)


@pytest.mark.parametrize(
    ("command", "part", "inner"),
    [
        ("train-draft", "loss", {"beta": 0.5}),
        ("train-draft", "sampling", {"temperature": 0.5}),
        ("generate", "machine", {"device": "cpu"}),
        ("bench", "sampling", {"top_k": 5}),
        ("init-draft", "machine", {"threads": 1}),
    ],
)
def test_nested_keys_are_refused_with_a_hint(tmp_path, capsys, command, part, inner):
    (tmp_path / "nested.yaml").write_text(yaml.safe_dump(REQUIRED[command] | {part: inner}))
    assert main([command, "--config", str(tmp_path / "nested.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "flat" in line and next(iter(inner)) in line


def test_an_unknown_key_is_refused(tmp_path, capsys):
    (tmp_path / "unknown.yaml").write_text(yaml.safe_dump(REQUIRED["check"] | {"temprature": 1}))
    assert main(["check", "--config", str(tmp_path / "unknown.yaml")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "temprature" in line
