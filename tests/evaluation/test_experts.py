"""Mixtures of experts: the router's choices are counted as they are, and predict the verify cost that is measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_mixtures import DENSE_LAYERS, EXPERTS, MIXTURES, PER_TOKEN, make_mixture
from tiny_models import make_model, save
from tiny_runs import example, prompt_rows, write_rows

from specdistill import BenchConfig
from specdistill import bench as bench_anywhere
from specdistill.decoding.costs import measure_costs, windows_of
from specdistill.decoding.proof import prove
from specdistill.evaluation import measure
from specdistill.evaluation.experts import Routing, routed_hidden_states
from specdistill.evaluation.measure import measure_draft
from specdistill.models.experts import RoutingRecorder, expert_layers, step_bytes

# ---- what is recorded


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_found_and_their_calls_recorded_in_every_family(family):
    model = make_mixture(family)
    layers = expert_layers(model)
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        model.hidden_states(torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]]))
        routed = recorder.take()
        assert recorder.take() is None, "taken ids are forgotten"
    dense = DENSE_LAYERS if family in ("deepseek_v2", "deepseek_v3", "glm4_moe", "ernie4_5_moe", "dots1") else 0
    assert len(layers) == len(routed) == 3 - dense and all(layer.count == EXPERTS for layer in layers)
    assert all(ids.shape == (8, PER_TOKEN) and ids.max() < EXPERTS for ids in routed)
    # Weights: all but the experts and an embedding that is only looked up.
    held = sum(layer.parameters * layer.count for layer in layers) * 4
    looked_up = 0 if model.config.tie_word_embeddings else model.model.get_input_embeddings().weight.numel() * 4
    assert step_bytes(model) + held + looked_up == model.num_parameters * 4
    assert not [hook for layer in layers for hook in layer.module._forward_pre_hooks], "hooks are removed"


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_recorded_experts_are_the_best_of_the_routers_logits(family):
    model = make_mixture(family)
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), RoutingRecorder(model) as recorder:
        logits = model.model(tokens, output_router_logits=True).router_logits
    for ids, scores in zip(recorder.take(), logits, strict=True):
        assert torch.equal(ids.sort(1).values, scores.topk(PER_TOKEN).indices.sort(1).values)


def test_a_dense_model_has_no_experts():
    model = make_model()
    assert not expert_layers(model) and step_bytes(model) == 4 * (
        model.num_parameters - model.model.get_input_embeddings().weight.numel()
    )


# ---- what is counted


def one_layer(experts=4, per_token=1):
    return make_mixture(
        "qwen3_moe", num_hidden_layers=1, experts=experts, per_token=per_token, tie_word_embeddings=True
    )


def test_distinct_experts_by_hand():
    """Tokens 0 1 0 2: runs of two hold {0 1}, {1 0}, {0 2}, of three {0 1}, {0 1 2}, of four {0 1 2}."""
    model = one_layer()
    routing = Routing(model, longest=6)
    routing.add([torch.tensor([[0], [1], [0], [2]])])
    costs = routing.costs(batch_size=1)
    assert costs.distinct_experts == pytest.approx({1: 1, 2: 2, 3: 2.5, 4: 3})
    expert, shared = expert_layers(model)[0].weight_bytes, step_bytes(model)
    assert expert == 4 * 3 * 32 * 16 and shared == 4 * model.num_parameters - 4 * expert
    assert costs.shared == pytest.approx(shared / (shared + expert))
    assert costs.verify_cost[3] == pytest.approx(costs.shared + (1 - costs.shared) * 2.5)
    assert costs.active_parameters == model.num_parameters - 3 * 3 * 32 * 16
    # Two rows at once: expert 0 is missed by both with probability 1/2 * 1/2, 1 and 2 with 3/4 * 3/4.
    both = routing.costs(batch_size=2)
    assert both.distinct_experts[1] == pytest.approx(3 / 4 + 2 * 7 / 16) and both.experts_per_token == 1
    # Another answer's runs count alike, and none reaches from one answer into the next.
    routing.add([torch.tensor([[3], [3]])])
    assert routing.costs(1).distinct_experts == pytest.approx({1: 1, 2: (2 + 2 + 2 + 1) / 4, 3: 2.5, 4: 3})


def test_experts_that_compute_nothing_are_not_counted():
    """LongCat sends some tokens to ids beyond its experts."""
    routing = Routing(one_layer(per_token=2), longest=2)
    routing.add([torch.tensor([[0, 9], [0, 4]])])
    assert routing.costs(1).distinct_experts == pytest.approx({1: 1, 2: 1})


def test_no_answers_no_costs():
    assert Routing(one_layer(), longest=2).costs(1) is None


def test_only_the_answers_tokens_are_counted():
    model = make_mixture("qwen3_moe")
    answer = example((5, 6, 7, 8, 9), (10, 11, 12))
    routing = Routing(model, longest=3)
    states = routed_hidden_states(model, answer, routing)
    assert states[answer].shape == (3, 32)
    with torch.no_grad():
        logits = model.model(torch.arange(5, 13)[None], output_router_logits=True).router_logits
    chosen = [scores.topk(PER_TOKEN).indices[5:] for scores in logits]
    by_hand = {1: PER_TOKEN, 3: np.mean([len(ids.unique()) for ids in chosen])}
    found = routing.costs(1).distinct_experts
    assert {1: found[1], 3: found[3]} == pytest.approx(by_hand)


# ---- what is timed


def test_windows_are_the_middle_of_answers_that_are_long_enough():
    answers = [example((5, 6), tuple(range(10, 17))), example((7,), (8, 9))]
    assert windows_of(answers, 3) == [([5, 6, 10, 11], [12, 13, 14])]


def test_a_mixtures_passes_read_the_windows(monkeypatch):
    """A mixture's time depends on its tokens: ids 0, 1, 2 ... say nothing of what it will check."""
    model, read = make_mixture("qwen3_moe"), []
    # The proof reads tokens of its own.
    prove(model)
    base = type(model.base_model)
    original = base.forward

    def watching(self, input_ids=None, **named):
        if self is model.base_model:
            read.append(input_ids.tolist())
        return original(self, input_ids=input_ids, **named)

    monkeypatch.setattr(base, "forward", watching)
    windows = [([5, 6], [7, 8, 9]), ([10], [11, 12, 13]), ([14, 15], [16, 17, 18])]
    draft = make_model(layers=1)
    settings = {"batch_size": 2, "max_draft_tokens": 2, "context": 4, "repeats": 2}
    measure_costs(model, draft, windows=windows, **settings)
    # After passes over any ids: by repeat the rows' texts, and 1, 2 and 3 of their next tokens.
    rows = [(0, 1), (2, 0), (1, 2)]
    expected = []
    for pair in rows:
        texts = [windows[row][0] for row in pair]
        expected.append([ids + [0] * (max(map(len, texts)) - len(ids)) for ids in texts])
        expected += [[windows[row][1][:width] for row in pair] for width in (1, 2, 3)]
    assert read[-len(expected) :] == expected and len(read) > len(expected)


# ---- the whole bench


def folder_of(tmp_path, target, answers=24):
    save(target, tmp_path / "target")
    save(make_model(layers=1, seed=9), tmp_path / "draft")
    write_rows(tmp_path / "prompts.jsonl", prompt_rows(answers))
    return tmp_path


def bench(folder, **settings):
    names = {name: str(folder / name) for name in ("target", "draft")} | {"prompts": str(folder / "prompts.jsonl")}
    defaults = {"max_new_tokens": 24, "max_draft_tokens": 7, "num_draft_tokens": 2, "temperature": 1.0}
    return measure_draft(BenchConfig.flat(**(names | defaults | settings)))


@pytest.fixture
def timed_windows(monkeypatch):
    """The windows that a bench times its steps on."""
    seen = []

    def watching(*models, windows=(), **settings):
        seen.extend(windows)
        return measure_costs(*models, windows=windows, **settings)

    monkeypatch.setattr(measure, "measure_costs", watching)
    return seen


def test_bench_predicts_a_mixture_from_its_own_answers(tmp_path, timed_windows):
    report = bench(folder_of(tmp_path, make_mixture("qwen3_moe"), 8), batch_size=2)
    assert timed_windows and all(len(after) == 8 for _, after in timed_windows)
    experts = json.loads(json.dumps(report.to_json()))["economics"]["experts"]
    assert experts["experts"] == EXPERTS and experts["experts_per_token"] == PER_TOKEN
    assert list(experts["distinct_experts"]) == list(experts["verify_cost"]) == [str(n) for n in range(1, 9)]
    distinct = list(experts["distinct_experts"].values())
    assert PER_TOKEN < distinct[0] < 2 * PER_TOKEN and distinct == sorted(distinct) and distinct[-1] <= EXPERTS
    assert experts["verify_cost"]["1"] == 1 and set(experts["verify_cost"]) == set(
        map(str, report.economics.verify_cost)
    )
    assert report.lossless.greedy_identical


def test_a_real_engines_report_has_the_prediction_alone(tmp_path):
    """Single passes of an engine can't be timed; its rounds of 2 draft tokens check 3."""
    folder = folder_of(tmp_path, make_mixture("qwen3_moe"), 8)
    settings = {"engine": "transformers", "max_draft_tokens": 4, "num_draft_tokens": 2, "max_new_tokens": 12}
    names = {name: str(folder / name) for name in ("target", "draft")} | {"prompts": str(folder / "prompts.jsonl")}
    economics = bench_anywhere(BenchConfig.flat(**names, **settings)).economics
    assert list(economics.experts.verify_cost) == [1, 2, 3, 4, 5] and not economics.verify_cost
    assert economics.experts.distinct_experts[1] == pytest.approx(PER_TOKEN)


def test_a_dense_target_has_no_such_section(tmp_path, timed_windows):
    report = bench(folder_of(tmp_path, make_model(layers=2), 8))
    assert report.economics.experts is None and "experts" not in report.to_json()["economics"]
    assert not timed_windows


@pytest.mark.alone
def test_measured_verify_cost_is_the_predicted_one(tmp_path):
    """Two layers of 32 experts, 400 MB of weights that no cache holds: reading them is nearly all that takes time."""
    target = make_mixture(
        "qwen3_moe", hidden_size=512, moe_intermediate_size=1024, num_hidden_layers=2, experts=32,
        per_token=4, head_dim=64,
    )  # fmt: skip
    folder = folder_of(tmp_path, target)
    # One thread; a machine that is busy for a moment gets two more tries.
    for _ in range(3):
        economics = bench(folder, threads=1, latency_prompts=6).economics
        off = {n: economics.verify_cost[n] / economics.experts.verify_cost[n] - 1 for n in range(1, 9)}
        if max(map(abs, off.values())) < 0.2:
            break
    assert max(map(abs, off.values())) < 0.2, {n: f"{value:+.2f}" for n, value in off.items()}
    assert economics.experts.shared < 0.1 and economics.experts.verify_cost[8] > 3
