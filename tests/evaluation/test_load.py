"""Speed over the batch: a law of costs decides where drafting stops paying, as predicted and as measured."""

from __future__ import annotations

import json
import math
import shlex
import time
from collections import Counter
from dataclasses import replace

import pytest
from bench_report import example_report
from tiny_models import make_model, save

from specdistill import BenchConfig, bench
from specdistill.cli import main
from specdistill.decoding.cached_model import CachedModel
from specdistill.decoding.costs import Costs
from specdistill.errors import ConfigError
from specdistill.evaluation import load
from specdistill.evaluation.interruption import BenchFailedError
from specdistill.evaluation.load import batched
from specdistill.evaluation.load_section import crossing, draft_schedule, load_section
from specdistill.evaluation.report_load import LoadRow
from specdistill.evaluation.statistics import Estimate
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text
from specdistill.report.terminal import bench_tables
from specdistill.report.wording_load import vllm_setting


def row(mean, predicted, spread=0.02, **more):
    speedup = Estimate(mean, mean - spread, mean + spread)
    values = {"num_draft_tokens": 2, "verify_cost": 1.5, "round_cost": 1.9, "baseline_tokens_per_second": 10.0}
    values |= {"speculative_tokens_per_second": 10 * mean, "batches": 8, "prompts": 64, "predicted_speedup": predicted}
    return LoadRow(**(values | {"speedup": speedup} | more))


# ---- the arithmetic


def test_the_crossing_lies_on_a_line_over_the_logarithm():
    """From +0.3 at 4 to -0.1 at 16: three quarters of two doublings."""
    assert crossing({1: 1.6, 4: 1.3, 16: 0.9}) == pytest.approx(4 * 2**1.5)
    assert crossing({1: 1.6, 4: 1.3}) is None and crossing({1: 0.9, 4: 0.8}) is None
    # A dip that recovers is no crossing.
    assert crossing({1: 1.2, 2: 0.9, 4: 1.1, 8: 0.9}) == pytest.approx(4 * 2**0.5)


def test_it_stops_paying_where_no_interval_lies_above_one_any_more():
    section = load_section(
        {1: row(1.5, 1.5), 2: row(1.01, 1.2), 4: row(1.1, 1.02), 8: row(1.01, 0.98), 16: row(0.7, 0.8)}
    )
    # At 2 the interval spans 1, but at 4 it pays again; at 8 it spans 1, which is no reason to draft.
    assert (section.stops_paying_at, section.predicted_to_stop_at) == (8, 8)
    assert "stops paying at batch 8: 1.10x [1.08, 1.12] at 4, 1.01x [0.99, 1.03] at 8" in section.why
    pays = load_section({1: row(1.5, 1.5), 4: row(1.2, 0.9)})
    assert (pays.stops_paying_at, pays.predicted_to_stop_at) == (None, 4)
    assert "pays up to the largest measured batch: 1.20x" in pays.why
    never = load_section({1: row(0.9, 1.5), 4: row(0.8, 1.4)})
    assert (never.stops_paying_at, never.predicted_to_stop_at) == (1, None)
    assert "at no measured batch, at most 0.90x [0.88, 0.92] at 1" in never.why


def test_without_intervals_it_is_undecided():
    nan = float("nan")
    section = load_section({1: row(1.5, 1.5), 4: replace(row(0.5, 0.9), speedup=Estimate(0.5, nan, nan), prompts=5)})
    assert section.stops_paying_at is None and section.predicted_to_stop_at == 4 and "undecided" in section.why


def costs_of(batch, draft, slope):
    """A target pass of n tokens takes 1 + slope n batch seconds."""
    step = 1 + slope * batch
    return Costs(step, draft(batch), {n: (1 + slope * n * batch) / step for n in (1, 2, 3)})


def draft_seconds(batch):
    return 0.19 + 0.05 * batch


def test_the_schedule_takes_the_best_length_of_every_batch_between_the_measured_ones():
    """Two tokens gain while 3 (1 + 0.1 b) > 2 (0.19 + 0.05 b) + 1 + 0.3 b, so up to 16.2; one token does up to 10."""
    costs = {size: costs_of(size, draft_seconds, 0.1) for size in (1, 8, 32)}
    predicted = {1: 1.875, 2: 3.0}
    assert draft_schedule(costs, predicted, None) == [(1, 16, 2), (17, 32, 0)]
    # The measurement has the last word.
    assert draft_schedule(costs, predicted, 8) == [(1, 7, 2), (8, 32, 0)]
    assert draft_schedule(costs, predicted, 1) is None
    # Agreement that falls off makes one token better than two: 1.5 over 1.39 + 0.25 b, 1.6 over 1.38 + 0.4 b.
    assert draft_schedule(costs, {1: 1.8, 2: 2.0}, None)[0] == (1, 8, 1)


def test_the_schedule_never_contradicts_what_was_measured():
    costs = {size: costs_of(size, draft_seconds, 0.1) for size in (1, 8, 32)}
    predicted = {1: 1.875, 2: 3.0}
    # It pays at 32, where nothing was predicted to gain: from 8 to 32 it then pays at both ends.
    pays = {1: row(1.3, 1.5), 8: row(1.2, 1.2, num_draft_tokens=1), 32: row(1.1, 0.8, num_draft_tokens=3)}
    assert draft_schedule(costs, predicted, None, pays) == [(1, 16, 2), (17, 31, 1), (32, 32, 3)]
    # It does not at 1 and 8, where it was predicted to; between 8 and 32 the two ends differ, and the costs decide.
    late = {1: row(0.9, 1.5), 8: row(0.8, 1.2), 32: row(1.1, 0.8)}
    found = draft_schedule(costs, predicted, None, late)
    assert found == [(1, 8, 0), (9, 16, 2), (17, 31, 0), (32, 32, late[32].num_draft_tokens)]
    section = load_section(late, costs, predicted)
    assert section.num_speculative_tokens_per_batch_size == found


def test_every_prompt_is_taken_once_and_batches_differ():
    assert batched(32, 1) == list(range(32)) and batched(12, 2) == list(range(12))
    chosen = batched(10, 4)
    assert len(chosen) == 24 and chosen[:10] == list(range(10)) and set(Counter(chosen).values()) <= {2, 3}
    batches = [tuple(sorted(chosen[start : start + 4])) for start in range(0, 24, 4)]
    assert len(set(batches)) == 6


# ---- tiny models under a clock that the law moves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    model = make_model(layers=2)
    save(model, folder / "target")
    save(model, folder / "draft")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w{2 * i}"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def settings(folder, **more):
    places = {name: str(folder / name) for name in ("target", "draft")} | {"prompts": str(folder / "prompts.jsonl")}
    short = {"max_new_tokens": 16, "max_draft_tokens": 2, "num_draft_tokens": 2, "latency_prompts": 6}
    return places | short | more


@pytest.fixture
def law(monkeypatch):
    """Time passes in models only: 1 + 0.1 tokens rows for the target, `draft_seconds` for the draft, none for prompts.

    So is the draft's first step, which reads the prompt: the measured speed-up is a little above the predicted one.
    """
    clock, real = [0.0], CachedModel._pass

    def timed(self, token_ids, offsets=None, **more):
        hidden = real(self, token_ids, offsets, **more)
        rows, width = token_ids.shape
        if max(self.lengths) + max(offsets or [0]):
            clock[0] += draft_seconds(rows) if "draft" in self.model.name else 1 + 0.1 * rows * width
        return hidden

    monkeypatch.setattr(CachedModel, "_pass", timed)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])


def by_law(size):
    """Three tokens for two draft steps and a check of three, against three plain steps."""
    step = 1 + 0.1 * size
    return 3 * step / (2 * draft_seconds(size) + 1 + 0.3 * size)


def test_the_crossing_is_predicted_and_measured_where_the_law_has_it(folder, law, capsys):
    report = bench(BenchConfig.flat(**settings(folder, batch_sizes=(32, 1, 8))))
    found = report.load
    assert list(found.batch) == [1, 8, 32] and by_law(8) > 1 > by_law(32)
    for size, measured in found.batch.items():
        step = 1 + 0.1 * size
        assert measured.verify_cost == pytest.approx((1 + 0.3 * size) / step)
        assert measured.round_cost == pytest.approx((2 * draft_seconds(size) + 1 + 0.3 * size) / step)
        assert measured.predicted_speedup == pytest.approx(by_law(size))
        assert measured.speedup.mean == pytest.approx(by_law(size), rel=0.04)
        assert measured.baseline_tokens_per_second == pytest.approx(16 * size / (15 * step), rel=0.04)
        assert measured.prompts == 6 and measured.batches == 6
    assert (found.stops_paying_at, found.predicted_to_stop_at) == (32, 32)
    assert found.predicted_crossing == pytest.approx(crossing({8: by_law(8), 32: by_law(32)}))
    assert 8 < found.crossing < 32
    bench_tables(report)
    printed, page = capsys.readouterr().out, html_report(report)
    for text in (
        found.why,
        "as predicted from costs",
        '"num_speculative_tokens_per_batch_size": [[1, 16, 2], [17, 32, 0]]',
    ):
        assert text in printed.replace("\n", " "), text
    assert "Under load" in page and "From which batch on does drafting stop paying?" in page
    stored = json.loads(json_text(report))["load"]
    assert stored["stops_paying_at"] == 32 and stored["batch"]["8"]["speedup"]["mean"] > 1
    assert stored["num_speculative_tokens_per_batch_size"] == [[1, 16, 2], [17, 32, 0]]


def test_few_prompts_leave_it_undecided(folder, law):
    found = bench(BenchConfig.flat(**settings(folder, batch_sizes=(1, 8), latency_prompts=5))).load
    assert found.stops_paying_at is None and "undecided" in found.why and "5 prompts" in found.why
    assert all(math.isnan(entry.speedup.low) for entry in found.batch.values())
    assert found.batch[8].speedup.mean == pytest.approx(by_law(8), rel=0.04)


def test_the_length_is_the_best_of_each_batch_where_none_is_set(folder, law):
    """15 tokens after the first: 4 rounds of 4 or 5 of 3. At 64 rows both lengths lose, two tokens less than three."""
    found = bench(
        BenchConfig.flat(**settings(folder, batch_sizes=(1, 64), num_draft_tokens=0, max_draft_tokens=3))
    ).load
    assert [entry.num_draft_tokens for entry in found.batch.values()] == [3, 2]
    three = 3.75 * 7.4 / (3 * draft_seconds(64) + 1 + 0.4 * 64)
    assert found.batch[64].predicted_by_length == pytest.approx({1: 0.807, 2: by_law(64), 3: three}, rel=1e-3)


def test_memory_that_ends_leaves_the_smaller_sizes(folder, law, monkeypatch):
    real = load.measure_costs

    def costs(*models, batch_size, **more):
        if batch_size > 4:
            raise MemoryError("no more")
        return real(*models, batch_size=batch_size, **more)

    monkeypatch.setattr(load, "measure_costs", costs)
    with pytest.raises(BenchFailedError, match="out of memory; leave the larger --batch-sizes away") as failed:
        bench(BenchConfig.flat(**settings(folder, batch_sizes=(1, 4, 8, 16))))
    report = failed.value.report
    assert list(report.load.batch) == [1, 4] and list(report.partial.left_out) == ["batch size 8"]


# ---- settings and words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_sizes": (1, 0)}, "--batch-sizes takes whole numbers from 1 on, got 0"),
        ({"batch_sizes": (2, 2)}, "--batch-sizes names a number twice"),
        ({"batch_sizes": (1, 2), "draft_length": "auto"}, "leave out --draft-length auto"),
        ({"batch_sizes": (1, 2), "engine": "transformers"}, "for --engine transformers set --concurrency"),
        ({"concurrency": (1, 2)}, "set --batch-sizes for our decoder"),
        ({"concurrency": (1, 2), "engine": "transformers"}, "it takes one prompt at a time"),
    ],
)
def test_what_has_no_effect_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        BenchConfig.flat(target="t", draft="d", **given)


def test_flags_take_several_sizes(folder, capsys):
    words = [word for name, value in settings(folder).items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["bench", *words, "--batch-sizes", "1", "2"]) == 0
    assert "under load" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--batch-sizes", "1", "2.5"], ["--config", "half.yaml"]])
def test_half_a_row_is_refused(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "half.yaml").write_text("batch_sizes: [1, 2.5]\n")
    assert main(["bench", "--target", "t", "--draft", "d", *words]) == 2
    assert "--batch-sizes must be a whole number, got 2.5" in capsys.readouterr().err


def test_vllm_s_flag_is_ready_to_paste():
    """A list of (first batch, last batch, draft tokens), from 1 on, without gaps; the most tokens beside it."""
    section = replace(
        load_section({1: row(1.5, 1.5)}), num_speculative_tokens_per_batch_size=[(1, 3, 4), (4, 8, 2), (9, 16, 0)]
    )
    flag, value = shlex.split(vllm_setting(replace(example_report(), load=section)))
    assert flag == "--speculative-config"
    assert json.loads(value) == {
        "method": "draft_model",
        "model": "small",
        "num_speculative_tokens": 4,
        "num_speculative_tokens_per_batch_size": [[1, 3, 4], [4, 8, 2], [9, 16, 0]],
    }
    assert vllm_setting(replace(example_report(), load=load_section({1: row(1.5, 1.5)}))) is None
    assert vllm_setting(example_report()) is None


def test_batches_of_prompts_taken_again_are_marked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    section = load_section({1: row(1.5, 1.5), 16: row(0.9, 0.9, batches=6, prompts=32)})
    bench_tables(replace(example_report(), load=section))
    printed = capsys.readouterr().out
    assert (
        "0.90 [0.88, 0.92]" in printed
        and "16*" in printed
        and "prompts were taken again" in printed
        and "1*" not in printed
    )
