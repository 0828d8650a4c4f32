"""No interval from a handful of units, and no verdict that believes one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_model, perturbed, save
from tiny_runs import prompt_rows, standard_models, train, write_folder, write_rows

from specdistill import BenchConfig, bench
from specdistill.cli import main
from specdistill.evaluation import economics
from specdistill.evaluation.sections import latency_section
from specdistill.evaluation.statistics import FEWEST_UNITS, Estimate, of_sums, paired_difference, ratio
from specdistill.report.wording import estimate


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(make_model(layers=1, seed=5), folder / "draft")
    save(perturbed(target, 0.05), folder / "other")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60}", "category": "ab"[i % 2]} for i in range(12)]
    write_rows(folder / "prompts.jsonl", rows)
    return folder


def asked(files, **settings):
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    return BenchConfig.flat(**(given | {"num_draft_tokens": 2, "max_new_tokens": 8, "num_prompts": 0} | settings))


@pytest.mark.parametrize("units", [1, 2, 5])
def test_too_few_units_give_a_value_without_an_interval(units):
    found = ratio([1.0, 2.0, 3.0, 4.0, 5.0][:units], np.ones(units))
    assert found.mean == pytest.approx((units + 1) / 2) and not found.has_interval
    assert found.to_json() == {"mean": pytest.approx(found.mean), "ci95": [None, None]}
    assert not paired_difference((np.ones(units), np.ones(units)), (np.zeros(units), np.ones(units))).has_interval
    assert estimate(found).endswith("(too few)")


def test_six_units_give_an_interval():
    assert FEWEST_UNITS == 6 and ratio(range(1, 7), np.ones(6)).has_interval


def test_prompts_without_any_count_are_no_units():
    """Nine prompts whose rounds proposed nothing don't make an interval out of one."""
    assert not ratio([3.0] + [0.0] * 9, [4.0] + [0.0] * 9).has_interval
    assert ratio([0.0] * 9, [4.0] * 9).has_interval
    assert not of_sums(lambda a, b: a / b, [], []).has_interval


@pytest.mark.parametrize("mean", [0.7, 1.4])
def test_no_interval_is_never_a_verdict_that_pays(mean):
    costs = economics.Costs(1.0, 0.1, {1: 1.0, 2: 1.2, 3: 1.4})
    found = economics.judge(costs, {1: 1.7, 2: 2.2}, 2, 0.5, Estimate(mean, float("nan"), float("nan")))
    assert found.verdict == "undecided"
    assert "needs 6 timed batches" in found.why and "--batch-size" in found.why and "nan" not in found.why
    slow = economics.Costs(1.0, 1.5, {1: 1.0, 2: 1.2, 3: 1.4})
    nothing = Estimate(mean, float("nan"), float("nan"))
    assert economics.judge(slow, {1: 1.7, 2: 2.2}, 2, 0.5, nothing).verdict == "cannot pay"


def test_an_interval_leaves_out_a_fortieth_on_each_side():
    """Resampled, 8 right of 16 are binomial: 3 or fewer have probability 0.011, 4 or fewer 0.038, 5 or fewer 0.105."""
    found = ratio([1.0, 0.0] * 8, np.ones(16))
    assert tuple(found) == (8 / 16, 4 / 16, 12 / 16)


@pytest.mark.parametrize(("low", "verdict"), [(0.95, "does not pay"), (1.0, "does not pay"), (1.01, "pays")])
def test_a_draft_pays_where_the_whole_interval_lies_above_1(low, verdict):
    costs = economics.Costs(1.0, 0.1, {1: 1.0, 2: 1.2, 3: 1.4})
    found = economics.judge(costs, {1: 1.7, 2: 2.2}, 2, 0.5, Estimate(1.2, low, 1.4))
    assert found.verdict == verdict
    assert ("the interval spans 1, so this is too close to call" in found.why) == (verdict == "does not pay")


@pytest.mark.parametrize("batch_size", [12, 3])
def test_a_bench_of_few_batches_never_pays(files, batch_size, monkeypatch):
    """Even where the clock made one lucky batch look twice as fast."""

    def lucky(runs):
        for run in runs:
            for plain, fast in zip(run.plain, run.speculative, strict=True):
                fast.seconds = plain.seconds / 2
        return latency_section(runs)

    monkeypatch.setattr("specdistill.evaluation.interruption.latency_section", lucky)
    monkeypatch.setattr("specdistill.evaluation.measure.measure_costs", lambda *_, **__: COSTS)
    report = bench(asked(files, batch_size=batch_size))
    assert report.latency.speedup.mean > 1.5 and report.economics.verdict == "undecided"
    assert report.to_json()["latency"]["speedup"]["ci95"] == [None, None]
    # Twelve prompts were scored one by one all the same.
    assert report.acceptance.alpha["greedy"].has_interval


COSTS = economics.Costs(1.0, 0.1, dict.fromkeys(range(1, 10), 1.0))


@pytest.mark.parametrize("engine", ["specdistill", "transformers"])
def test_few_prompts_are_announced_and_shown_as_too_few_everywhere(files, tmp_path, capsys, engine):
    pair = ["--target", str(files / "target"), "--draft", str(files / "draft"), "--compare", str(files / "other")]
    settings = ["--prompts", str(files / "prompts.jsonl"), "--num-prompts", "4", "--max-new-tokens", "8"]
    page, out = tmp_path / "page.html", tmp_path / "report.json"
    command = ["bench", *(pair if engine == "specdistill" else pair[:4]), *settings, "--engine", engine]
    assert main([*command, "--num-draft-tokens", "2", "--html", str(page), "--json", str(out)]) == 0
    captured = capsys.readouterr()
    assert "4 timed batches are too few for an interval" in captured.out + captured.err
    assert "(too few)" in captured.out and "nan" not in captured.out
    assert "(too few)" in page.read_text() and ">nan" not in page.read_text()
    report = json.loads(out.read_text())
    assert report["economics"]["verdict"] in ("undecided", "cannot pay")
    assert report["acceptance"]["alpha"]["greedy"]["ci95"] == [None, None]
    if engine == "specdistill":
        assert report["compare"]["difference"]["greedy"]["ci95"] == [None, None]


def test_a_gain_on_few_held_out_prompts_has_no_interval(tmp_path, capsys):
    folder = write_folder(tmp_path, standard_models(), prompt_rows(12))
    summary = train(folder, tmp_path / "out", heldout_prompts=3, method="supervised-kd", steps=4)
    assert not summary.gain["sampled"].has_interval
    text = (tmp_path / "out" / "summary.json").read_text()
    assert "NaN" not in text and json.loads(text)["gain"]["sampled"]["ci95"] == [None, None]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(too few prompts for an interval)" in card and "nan" not in card


def test_the_results_say_which_comparisons_are_not_fair():
    text = " ".join((Path(__file__).parents[2] / "docs/results.md").read_text().split())
    assert "canonical solutions" in text and '"Online over offline" compares two losses' in text
    assert "A live target beat" not in text
