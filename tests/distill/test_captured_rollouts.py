"""`train-draft --capture-steps`: graphs write what eager steps write, with the weights of each step."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
from by_hand import watched_run
from recorded_graphs import recorded_cuda_graphs
from tiny_runs import any_config, cut_config, standard_models, write_folder

from specdistill import init_draft
from specdistill.decoding import step_choice
from specdistill.decoding.captured_steps import cuda_graph
from specdistill.distill.sequences import captured_rollouts
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel

FEW = {"steps": 4, "eval_every": 4, "patience": 0, "learning_rate": 3e-2, "warmup": 0.0, "batch_size": 3}
METHODS = {
    "gkd": {"method": "gkd", "lmbda": 1.0},
    "distillspec": {"method": "distillspec", "target_fraction": 0.25, "micro_batch_size": 2},
    "skd": {"method": "skd", "skd_num_draft_tokens": 3},
    "lora": {"method": "gkd", "lmbda": 1.0, "lora_rank": 2},
    "seqkd": {"method": "seqkd"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A target, a draft, and a draft with a trimmed head."""
    place = write_folder(tmp_path_factory.mktemp("captured"), standard_models())
    init_draft(cut_config(place, place / "trimmed", vocab_keep=40))
    return place


@pytest.fixture
def graphs(monkeypatch):
    """Lets recorded graphs stand for compiled steps, and be the faster ones."""
    durations = itertools.cycle([0, 2, 0, 1])
    with recorded_cuda_graphs() as recorded:
        monkeypatch.setattr(step_choice, "time", SimpleNamespace(perf_counter=lambda: next(durations)))
        monkeypatch.setattr(step_choice, "compiled", cuda_graph)
        yield recorded


def written(run):
    """Token ids of each step's answers."""
    return [[one.answer_ids for one in step] for step in run.steps]


@pytest.mark.parametrize("draft", ["draft", "trimmed"])
@pytest.mark.parametrize("name", METHODS)
def test_texts_and_losses_are_those_of_eager_steps(folder, tmp_path, graphs, name, draft):
    settings = {"draft": str(folder / draft)} | FEW | METHODS[name]
    eager = watched_run(folder, tmp_path / "eager", **settings)
    assert not graphs
    captured = watched_run(folder, tmp_path / "captured", capture_steps=True, **settings)
    assert graphs and written(captured) == written(eager)
    assert captured.losses == pytest.approx(eager.losses, rel=1e-4)
    for weight, value in eager.weights.items():
        torch.testing.assert_close(captured.weights[weight], value, rtol=1e-3, atol=1e-4)


def test_a_graph_of_old_weights_writes_other_texts(folder, tmp_path, graphs, monkeypatch):
    """The planted error: a trimmed head's copy that no step brings up to date."""
    settings = {"draft": str(folder / "trimmed")} | FEW | METHODS["gkd"]
    eager = watched_run(folder, tmp_path / "eager", **settings)
    monkeypatch.setattr(LanguageModel, "weights_changed", lambda self: None)
    stale = watched_run(folder, tmp_path / "stale", capture_steps=True, **settings)
    assert written(stale)[0] == written(eager)[0] and written(stale) != written(eager)


@pytest.mark.parametrize(
    ("method", "target_weights", "roles"),
    [
        ("gkd", True, ["target", "draft"]),
        ("skd", True, ["target", "draft"]),
        ("seqkd", True, ["target"]),
        ("gkd", False, ["draft"]),
        ("seqkd", False, []),
    ],
)
def test_the_models_that_write_are_captured_for_the_runs_batch_and_said(monkeypatch, method, target_weights, roles):
    asked, lines = [], []

    def choose(model, *, batch_size):
        asked.append((model, batch_size))
        return step_choice.StepChoice("cuda_graphs", False, "it is a test")

    monkeypatch.setattr(captured_rollouts, "capture_steps", choose)
    pair = SimpleNamespace(target="target", draft="draft")
    captured_rollouts.capture_rollouts(pair, method, target_weights, 5, lines.append)
    assert asked == [(role, 5) for role in roles]
    said = "; ".join(f"steps of the {role}: eager, since it is a test" for role in roles)
    assert lines == [said or "no steps are captured: a server writes all answers"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shard": "draft"}, "--capture-steps needs weights that stay in their place"),
        ({"method": "supervised-kd"}, "--capture-steps captures the steps that write answers"),
        ({"soft_labels": "labels"}, "no step is left to capture"),
    ],
)
def test_what_writes_nothing_or_moves_weights_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        any_config(capture_steps=True, **settings)
