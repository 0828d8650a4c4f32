"""The whole bench on tiny models: the schema of docs/report.md, identity, comparison, padded and trimmed drafts."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_models import make_model, perturbed, save

from specdistill import BenchConfig
from specdistill.data.prompts import spread_over_categories
from specdistill.errors import ConfigError
from specdistill.evaluation.measure import measure_draft
from specdistill.models import vocabulary
from specdistill.report.json_file import json_text


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target = make_model(layers=4)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "good")
    save(make_model(layers=1, seed=9, vocab_size=72), folder / "bad")
    prompts = [{"prompt": f"w{i} w{i + 1} w{2 * i}", "category": "even" if i % 2 == 0 else "odd"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return folder


def bench(files, draft="good", **settings):
    defaults = {
        "prompts": str(files / "prompts.jsonl"),
        "max_new_tokens": 24,
        "max_draft_tokens": 3,
        "num_draft_tokens": 2,
    }
    return measure_draft(
        BenchConfig.flat(target=str(files / "target"), draft=str(files / draft), **(defaults | settings))
    )


# The keys that are never renamed, with the type that a reader of the JSON may rely on.
SCHEMA = {
    "schema": int,
    "target": {"name": str, "parameters": int, "vocab_size": int, "dtype": str},
    "draft": {"name": str, "parameters": int, "vocab_size": int, "dtype": str},
    "setup": {
        **dict.fromkeys(("device", "torch", "transformers", "engine"), str),
        **dict.fromkeys(
            ("threads", "top_k", "num_draft_tokens", "batch_size", "max_new_tokens", "prompts", "seed"), int
        ),
        **dict.fromkeys(("temperature", "top_p"), float),
    },
    "acceptance": {
        "tokens_scored": int,
        "alpha": {rule: {"mean": float, "ci95": list} for rule in ("greedy", "sampled", "argmax_draft")},
        "by_position": list,
        "by_position_conditional": list,
        "mean_acceptance_length": {"mean": float, "ci95": list},
        "mean_acceptance_length_macro": float,
        "acceptance_rate": {"mean": float, "ci95": list},
        "by_category": {"even": {"alpha_greedy": float, "mean_acceptance_length": float, "prompts": int}},
    },
    "latency": {
        **{
            name: dict.fromkeys(("tokens_per_second", "time_to_first_token", "time_per_output_token"), float)
            for name in ("baseline", "speculative")
        },
        "speedup": {"mean": float, "ci95": list},
        "engine_efficiency": float,
    },
    "economics": {
        "cost_ratio": float,
        "verify_cost": {"1": float, "4": float},
        "break_even_alpha": (float, type(None)),
        "best_num_draft_tokens": int,
        "predicted_speedup": {"1": float, "3": float},
        "perfect_draft_speedup": float,
        "verdict": str,
        "why": str,
    },
    "lossless": {"checked": bool, "greedy_identical": bool, "prompts_compared": int},
}


def check_schema(value, schema, path="report"):
    if isinstance(schema, dict):
        for key, inner in schema.items():
            assert key in value, f"{path}.{key} is missing"
            check_schema(value[key], inner, f"{path}.{key}")
    else:
        assert isinstance(value, schema), f"{path} is {value!r}"


def test_report_follows_the_schema_and_is_json(files):
    measured = bench(files)
    check_schema(measured.to_json(), SCHEMA)
    report = json.loads(json_text(measured))
    check_schema(report, SCHEMA)
    assert report["schema"] == 1 and report["setup"]["prompts"] == 8 and report["setup"]["num_draft_tokens"] == 2
    assert len(report["acceptance"]["by_position"]) == 2
    low, high = report["acceptance"]["alpha"]["greedy"]["ci95"]
    assert 0 <= low < report["acceptance"]["alpha"]["greedy"]["mean"] < high <= 1
    assert report["economics"]["verdict"] in ("pays", "does not pay", "cannot pay", "undecided")
    wanted = {"checked": True, "lossy": False, "greedy_identical": True, "prompts_compared": 8, "differences": []}
    assert report["lossless"] == wanted
    # At temperature 0 the prediction and the real decoder walk the same path.
    measured = report["acceptance"]["mean_acceptance_length"]["mean"]
    assert measured == pytest.approx(report["acceptance"]["predicted_mean_acceptance_length"]["2"])
    assert 0.5 < report["latency"]["engine_efficiency"] <= 1


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.8, "top_p": 0.9}, {"batch_size": 3}])
def test_a_draft_identical_to_its_target_scores_one_everywhere(files, settings):
    report = bench(files, "target", **settings)
    acceptance = report.acceptance
    assert acceptance.alpha["greedy"].mean == 1
    assert acceptance.alpha["sampled"].mean == pytest.approx(1, abs=1e-5)
    if settings.get("temperature"):
        # A draft that proposes its argmax to a target that samples is right as often as that token is drawn.
        assert 0 < acceptance.alpha["argmax_draft"].mean < 1
    else:
        assert acceptance.alpha["argmax_draft"].mean == 1
        assert acceptance.alpha_at_temperature_1["sampled"].mean == pytest.approx(1, abs=1e-5)
    assert acceptance.acceptance_rate.mean == 1 and acceptance.by_position == [1, 1]
    assert report.lossless.greedy_identical


def test_compare_gives_paired_differences(files):
    report = bench(files, compare=str(files / "bad"))
    other = report.compare
    for rule in ("greedy", "sampled", "argmax_draft"):
        gap = report.acceptance.alpha[rule].mean - other.alpha[rule].mean
        assert getattr(other.difference, rule).mean == pytest.approx(gap)
    assert other.difference.greedy.low > 0


def test_the_lossy_rule_is_marked_and_never_called_lossless(files):
    report = bench(files, temperature=0.9, rule="lenient", lenience=0.5)
    assert report.setup.lossy and report.setup.lenience == 0.5
    assert not report.lossless.checked and not report.lossless.greedy_identical


@pytest.mark.parametrize("draft_length", ["confidence", "auto"])
def test_draft_lengths_that_vary_stay_lossless(files, draft_length):
    report = bench(files, draft_length=draft_length, num_draft_tokens=0)
    assert report.lossless.greedy_identical and report.setup.draft_length == draft_length
    assert len(report.acceptance.by_position) == 3


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft", "block"])
def test_rules_that_sample(files, rule):
    report = bench(files, temperature=0.9, rule=rule)
    assert report.setup.rule == rule and report.acceptance.alpha_at_temperature_1 is None
    assert report.lossless.greedy_identical and report.lossless.prompts_compared == 4
    assert 0 < report.acceptance.acceptance_rate.mean < 1


def test_draft_length_is_chosen_by_predicted_speed(files):
    report = bench(files, num_draft_tokens=0)
    predicted = report.economics.predicted_speedup
    assert report.setup.num_draft_tokens == max(predicted, key=predicted.get)
    assert report.economics.best_num_draft_tokens == report.setup.num_draft_tokens


def test_a_draft_as_slow_as_its_target_cannot_pay(files):
    report = bench(files, "target")
    assert report.economics.verdict in ("cannot pay", "does not pay", "undecided")
    assert report.economics.cost_ratio > 0.5


def test_trimmed_draft(files, tmp_path):
    target = make_model(layers=4)
    draft = save(perturbed(target, 0.02), tmp_path / "trimmed")
    vocabulary.save_kept_ids(draft, torch.arange(1, 40), "test")
    report = bench(files, str(draft))
    assert report.draft.head_size == 39 and report.lossless.greedy_identical
    assert report.acceptance.alpha["sampled"].mean < 1


def test_prompts_are_spread_over_categories():
    from specdistill.data import load_prompts

    chosen = spread_over_categories(load_prompts("builtin:heldout"), 12)
    assert [sum(each.category == name for each in chosen) for name in {each.category for each in chosen}] == [2] * 6


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_draft_tokens": 9, "max_draft_tokens": 8}, "exceeds --max-draft-tokens"),
        ({"num_draft_tokens": 257}, "--num-draft-tokens must be at most 256"),
        ({"max_new_tokens": 1}, "--max-new-tokens must be at least 2"),
        ({"temperature": -1.0}, "--temperature"),
        ({"rule": "sampled"}, "does not go with"),
        ({"rule": "greedy", "temperature": 1.0}, "does not go with"),
        ({"batch_size": 0}, "--batch-size"),
        ({"rule": "lenient", "temperature": 1.0}, "--lenience go together"),
        ({"lenience": 0.5}, "--lenience go together"),
        ({"confidence": 1.0}, "--confidence"),
        ({"min_p": 1.0}, "--min-p"),
    ],
)
def test_refuses_settings(settings, text):
    with pytest.raises(ConfigError, match=text):
        BenchConfig.flat(target="t", draft="d", **settings)
