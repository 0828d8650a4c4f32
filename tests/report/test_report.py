"""The terminal tables, the HTML page and the JSON file from one report."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from bench_report import DIFFERENT, OTHER_TARGET, RULES, category, example_report, spread, spreads

from specdistill.evaluation.advice import TimedHere
from specdistill.evaluation.advice_unknown import unknowns
from specdistill.evaluation.experts import ExpertCosts
from specdistill.evaluation.known_results import KnownResults
from specdistill.evaluation.report_acceptance import Prediction
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.summaries import TrainSummary
from specdistill.report.distill import training_table
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text
from specdistill.report.terminal import bench_tables
from specdistill.report.wording import alpha_rows, target_cost


@pytest.fixture
def report():
    return example_report()


def with_difference(report):
    lossless = replace(report.lossless, greedy_identical=False, differences=[DIFFERENT])
    return replace(report, lossless=lossless)


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "br", "img", "link", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_one_self_contained_page(report):
    page = html_report(report)
    tags = Tags()
    tags.feed(page)
    assert not tags.open and tags.seen.count("svg") == 4
    assert "script" not in tags.seen and "link" not in tags.seen and "img" not in tags.seen
    # matplotlib's own markers refer to each other inside the page.
    external = [link for link in tags.links if link and not link.startswith("#")]
    external += re.findall(r"(?:url\(|@import|xlink:href=)\s*[\"']?(?!#)(?:https?:|//)[^\"')]*", page)
    assert not external
    assert 'name="viewport"' in page and "big&lt;script&gt;" in page
    for text in (
        "<b>pays</b>",
        "Measured 1.10x",
        "Serve the draft with 2 tokens: 1.10 [1.08, 1.12] times as fast",
        "0.500 [0.480, 0.520]",
        "+0.110 [+0.090, +0.130]",
        "identical to the target",
    ):
        assert text in page


def test_a_second_target_is_in_every_form(report, capsys, monkeypatch):
    """At temperature 0 the rules that sample are shown at temperature 1, as in the table of alpha."""
    monkeypatch.setenv("COLUMNS", "200")
    assert "another target" not in html_report(report) and "compare_target" not in json_text(report)
    report = replace(report, compare_target=OTHER_TARGET)
    bench_tables(report)
    page, printed = html_report(report), capsys.readouterr().out
    for text in (
        "-0.200 [-0.220, -0.180]",
        "-0.150 [-0.170, -0.130]",
        "-0.110 [-0.130, -0.090]",
        "-0.070 [-0.090, -0.050]",
        "0.440 [0.420, 0.460]",
        "2.500 [2.480, 2.520]",
        "-0.400 [-0.420, -0.380]",
        "in place of full precision: the draft is accepted less",
    ):
        assert text in page and text in printed, text
    found = json.loads(json_text(report))["compare_target"]
    assert found["difference"]["greedy"]["ci95"] == pytest.approx([-0.22, -0.18])
    for mean, words in ((0.01, "no difference beyond chance"), (0.2, "is accepted more")):
        changed = replace(OTHER_TARGET, difference=replace(OTHER_TARGET.difference, greedy=spread(mean)))
        assert words in target_cost(replace(report, compare_target=changed))


def test_plots_scale_to_the_screen_and_are_deterministic(report):
    page = html_report(report)
    for opening in re.findall(r"<svg[^>]*>", page):
        assert "viewBox" in opening and not re.search(r"\s(width|height)=", opening)
    assert page == html_report(report)


def test_a_mixture_of_experts_has_a_table_of_predicted_and_measured_checks(report, capsys):
    experts = ExpertCosts(
        experts=64, experts_per_token=4.0, active_parameters=21_900_000, shared=0.22,
        distinct_experts={1: 4.0, 2: 7.6, 3: 10.9}, verify_cost={1: 1.0, 2: 1.71, 3: 2.37},
    )  # fmt: skip
    mixture = replace(report, economics=replace(report.economics, experts=experts))
    bench_tables(mixture)
    printed = capsys.readouterr().out
    assert "a token is sent to 4 of 64 a layer and uses 21.9M of 134.5M parameters" in printed
    assert "experts are 78% of the weights" in printed
    for row in (r"distinct experts +\S +4.0 +\S +7.6 +\S +10.9", r"predicted +\S +1.00 +\S +1.71 +\S +2.37",
                r"measured +\S +1.00 +\S +1.30 +\S +1.50"):  # fmt: skip
        assert re.search(row, printed), row
    page = re.sub(r"\s+", " ", html_report(mixture))
    assert "<td>2.37</td>" in page and "<td>10.9</td>" in page and "Mixture of experts: a token" in page
    bench_tables(report)
    assert "experts" not in capsys.readouterr().out + html_report(report)


def test_above_temperature_zero_the_rules_are_shown_as_they_are(report):
    difference = replace(report.compare.difference, at_temperature_1=None)
    report = replace(
        report,
        acceptance=replace(report.acceptance, alpha_at_temperature_1=None),
        compare=replace(report.compare, alpha_at_temperature_1=None, difference=difference),
    )
    assert [row.rule for row in alpha_rows(report)] == ["greedy", "sampled", "argmax_draft"]
    assert "0.600 [0.580, 0.620]" in html_report(report)


def test_report_without_a_second_draft_and_with_one_category(report):
    report = replace(
        with_difference(report),
        compare=None,
        draft=replace(report.draft, head_size=None),
        acceptance=replace(report.acceptance, by_category={"writing": category()}),
        economics=replace(report.economics, break_even_alpha=None, verdict="cannot pay"),
    )
    page = html_report(report)
    assert page.count("<svg") == 3 and "verdict bad" in page and "differed from the target" in page


def test_terminal_shows_the_numbers_and_the_verdict(report, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    bench_tables(report)
    shown = capsys.readouterr().out
    for text in (
        "0.500 [0.480, 0.520]",
        "verdict: pays",
        "head of 8,192 ids",
        "writing",
        "identical to the target",
        "big<script>",
    ):
        assert text in shown
    bench_tables(with_difference(report))
    assert "x at token 3 (logit gap 1.0e-06)" in capsys.readouterr().out


def test_training_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    alpha = dict.fromkeys(RULES, 0.25)
    training_table(
        TrainSummary(
            output="out", steps=5, kept_step=0, best_step=0, keep="best", watched="alpha (greedy)", why="the start",
            interrupted=False, learning_rate=1e-3, heldout_prompts=9,
            training_prompts=20, processes=1, measure="alpha", before=alpha, after=alpha,
            gain=spreads(dict.fromkeys(RULES, 0.1)),
        )
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "+0.100 [+0.080, +0.120]" in shown and "nothing better" in shown


def test_json_has_null_where_there_is_no_number(report):
    report = replace(
        report,
        latency=replace(report.latency, engine_efficiency=float("nan")),
        acceptance=replace(report.acceptance, by_position=[float("inf")]),
    )
    parsed = json.loads(json_text(report))
    assert parsed["latency"]["engine_efficiency"] is None and parsed["acceptance"]["by_position"] == [None]


def test_json_leaves_out_what_was_not_measured(report):
    """A reader asks for a key that may be absent; null means that there is no such number."""
    plain = replace(
        report,
        compare=None,
        draft=replace(report.draft, head_size=None),
        acceptance=replace(report.acceptance, alpha_at_temperature_1=None),
        economics=replace(report.economics, break_even_alpha=None),
    ).to_json()
    assert not {"compare", "partial"} & plain.keys() and "head_size" not in plain["draft"]
    assert not {"alpha_at_temperature_1", "counters", "prediction"} & plain["acceptance"].keys()
    assert "alpha_argmax_draft" not in plain["acceptance"]["by_category"]["writing"]
    assert plain["economics"]["break_even_alpha"] is None and plain["setup"]["packing_seconds"] is None
    full = report.to_json()
    assert full["compare"]["difference"]["at_temperature_1"]["sampled"]["mean"] == 0.11
    assert full["acceptance"]["alpha"]["greedy"] == {"mean": 0.5, "ci95": [0.48, 0.52]}
    assert full["economics"]["round_cost"] == {"1": 1.5, "2": 1.9} and full["draft"]["head_size"] == 8192


def test_an_engine_that_accepts_otherwise_than_its_rule_is_named(report, capsys):
    def off(mean, low, high):
        prediction = Prediction(
            mean_acceptance_length=spread(2.0),
            measured=2.0,
            measured_over_predicted_minus_1=Estimate(mean, low, high),
        )
        counted = replace(report, acceptance=replace(report.acceptance, prediction=prediction))
        bench_tables(counted)
        return "BEWARE" in capsys.readouterr().out, "verifies wrongly" in html_report(counted)

    assert off(-0.13, -0.16, -0.1) == (True, True)
    # Within the range that chance and the ends of answers explain.
    assert off(-0.03, -0.04, -0.02) == (False, False)
    assert off(-0.13, -0.3, 0.04) == (False, False)


@pytest.mark.parametrize(
    ("low", "cost", "said"),
    [
        (1.7, 1.1, "1.80x was measured, and by the costs of single steps it should be 1.20x"),
        (0.9, 0.08, "checking 2 tokens took 0.08 of a plain step, which is impossible"),
        (1.5, 1.1, None),
        (0.2, 1.1, None),
    ],
)
def test_costs_that_can_not_be_right_are_said(report, capsys, low, cost, said):
    length = report.setup.num_draft_tokens
    economics = replace(report.economics, predicted_speedup={length: 1.2}, verify_cost={2: cost, length + 1: 1.3})
    report = replace(report, economics=economics)
    report = replace(report, latency=replace(report.latency, speedup=Estimate(low + 0.1, low, low + 0.2)))
    bench_tables(report)
    shown = [capsys.readouterr().out, html.unescape(html_report(report))]
    ending = ": other work ran on this machine meanwhile"
    assert [(said or "") + ending in text for text in shown] == [said is not None] * 2


@pytest.mark.parametrize(("narrow", "wide", "said"), [(1.9, 1.3, True), (1.4, 1.3, False), (1.3, 1.9, False)])
def test_checks_that_cost_less_with_more_tokens_are_said_as_advise_says_them(report, capsys, narrow, wide, said):
    """Beyond what noise explains, more tokens can't be cheaper to check than fewer."""
    economics = replace(report.economics, verify_cost={1: 1.0, 2: narrow, 3: wide})
    bench_tables(replace(report, economics=economics))
    shown = capsys.readouterr().out, html.unescape(html_report(replace(report, economics=economics)))
    words = "checking 2 tokens took longer than checking 3, so that other work disturbed the times"
    assert [words in text for text in shown] == [said] * 2
    timed = TimedHere(target_step_seconds=1.0, verify_cost=economics.verify_cost, context=8, kinds={})
    counted = SimpleNamespace(answers=8, head_covers=None)
    lines = unknowns([], counted, timed, KnownResults(jobs={}, drafts=[]), [], True)
    assert any(words in line for line in lines) == said
