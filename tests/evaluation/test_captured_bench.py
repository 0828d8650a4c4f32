"""`--capture-steps`: steps are captured where they are right and faster, and the report says what that cost."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from head_drafts import make_head
from recorded_graphs import recorded_cuda_graphs
from tiny_models import make_model, perturbed, save

from specdistill import BenchConfig
from specdistill.decoding import step_choice
from specdistill.decoding.captured_steps import cuda_graph
from specdistill.decoding.costs import measure_costs
from specdistill.decoding.step_choice import capture_steps
from specdistill.errors import ConfigError
from specdistill.evaluation import compared_drafts
from specdistill.evaluation.measure import measure_draft
from specdistill.models.checkpoint import save_draft


@pytest.fixture
def clocked(monkeypatch):
    """Lets graphs stand for compiled steps; an eager step takes 2 seconds, a captured one the given number."""

    def set_clock(captured: float, capture=cuda_graph) -> None:
        durations = itertools.cycle([0, 2, 0, captured])
        monkeypatch.setattr(step_choice, "time", SimpleNamespace(perf_counter=lambda: next(durations)))
        monkeypatch.setattr(step_choice, "compiled", capture)

    with recorded_cuda_graphs():
        yield set_clock


@pytest.mark.parametrize("batch", [1, 3])
def test_faster_steps_are_used(clocked, batch):
    clocked(captured=1)
    model = make_model()
    choice = capture_steps(model, batch_size=batch)
    assert (choice.used, choice.eager_seconds, choice.captured_seconds) == (True, 2, 1)
    assert model.step_runner is not None
    # One pass, and one round of drafting.
    assert choice.so_far(model).graphs == 2
    assert choice.line() == "torch.compile (captured 1000.00 ms, eager 2000.00 ms)"


def test_steps_that_are_not_faster_are_not_used(clocked):
    clocked(captured=2)
    model = make_model()
    choice = capture_steps(model)
    assert not choice.used and model.step_runner is None and choice.graphs == 1
    assert choice.line().startswith("eager, since captured steps are not faster (captured 2000.00 ms")


def test_steps_that_give_other_states_are_not_used(clocked):
    def wrong(call, inputs, cache):
        replay = cuda_graph(call, inputs, cache)
        return lambda *inputs: tuple(output * 1.01 for output in replay(*inputs))

    clocked(captured=1, capture=wrong)
    model = make_model()
    choice = capture_steps(model)
    assert not choice.used and "captured states differ by 0.01 of the largest" in choice.reason
    assert model.step_runner is None


def test_steps_that_fail_to_capture_are_not_used_and_say_why(clocked):
    def failing(call, inputs, cache):
        raise RuntimeError("no compiler found\nmore lines")

    clocked(captured=1, capture=failing)
    model = make_model()
    assert capture_steps(model).reason == "capturing failed (no compiler found)"
    assert model.step_runner is None


def test_models_whose_steps_no_graph_could_hold_say_so():
    model = make_model()
    model.model.config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 64}
    assert capture_steps(model).reason == "its positions depend on the length of the text"


def pair_arguments(folder):
    target = make_model(layers=7)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    save(perturbed(target, 0.03), folder / "other")
    save_draft(make_head(target), target, folder / "head")
    rows = [{"prompt": " ".join(f"w{(7 * row + place) % 60}" for place in range(2 + row))} for row in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "target": str(folder / "target"), "draft": str(folder / "draft"), "raw_prompts": True, "batch_size": 3,
        "prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 20, "max_draft_tokens": 3, "baselines": "none",
        "num_draft_tokens": 3,
    }  # fmt: skip


def test_a_head_and_its_target_run_eagerly_and_say_so(clocked, tmp_path):
    arguments = pair_arguments(tmp_path) | {"draft": str(tmp_path / "head"), "compare": (str(tmp_path / "draft"),)}
    clocked(captured=1)
    report = measure_draft(BenchConfig.flat(**arguments, capture_steps=True))
    assert report.lossless.greedy_identical and len(report.leaderboard) == 2
    for choice in report.captured_steps.values():
        assert choice.line() == "eager, since a head reads the target's hidden states" and choice.graphs == 0


def test_drafts_of_compare_are_captured_as_the_draft_is(clocked, tmp_path, monkeypatch):
    """Else they would be ranked by eager steps against a captured target's."""
    arguments = pair_arguments(tmp_path) | {"compare": (str(tmp_path / "head"), str(tmp_path / "other"))}
    timed = []

    def watched(target, draft, **settings):
        timed.append((type(draft).__name__, draft.step_runner is not None))
        return measure_costs(target, draft, **settings)

    monkeypatch.setattr(compared_drafts, "measure_costs", watched)
    clocked(captured=1)
    # The head's scores come from a pass of the captured target, whose kept buffers belong to generating.
    report = measure_draft(BenchConfig.flat(**arguments, capture_steps=True))
    assert timed == [("HeadModel", False), ("LanguageModel", True)]
    assert report.lossless.greedy_identical and len(report.leaderboard) == 3


def test_the_report_names_time_and_graphs_and_answers_stay_the_same(clocked, tmp_path):
    arguments = pair_arguments(tmp_path)
    eager = measure_draft(BenchConfig.flat(**arguments))
    assert eager.captured_steps is None and "captured_steps" not in eager.to_json()
    clocked(captured=1)
    captured = measure_draft(BenchConfig.flat(**arguments, capture_steps=True))
    assert captured.lossless.greedy_identical
    assert captured.acceptance.mean_acceptance_length == eager.acceptance.mean_acceptance_length
    section = captured.to_json()["captured_steps"]
    assert set(section) == {"target", "draft"}
    for choice in section.values():
        assert choice["used"] and choice["graphs"] > 2 and choice["capture_seconds"] > 0


def test_real_engines_refuse_it():
    with pytest.raises(ConfigError, match="--capture-steps is for our decoder, not for transformers"):
        BenchConfig.flat(target="t", draft="d", engine="transformers", capture_steps=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_captures():
    model = make_model()
    model.model.cuda()
    choice = capture_steps(model, batch_size=3)
    assert choice.way == "cuda_graphs" and (choice.used or choice.captured_seconds is not None), choice
