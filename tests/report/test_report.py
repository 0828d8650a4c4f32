"""The terminal tables, the HTML page and the JSON file from one report."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from specdistill.report.html import html_report
from specdistill.report.json_file import json_report
from specdistill.report.terminal import alpha_rows, bench_tables, training_table


def spread(mean):
    return {"mean": mean, "ci95": [mean - 0.02, mean + 0.02]}


@pytest.fixture
def report():
    rules = ("greedy", "sampled", "argmax_draft")
    alpha = {rule: spread(0.5 + place / 10) for place, rule in enumerate(rules)}
    speeds = {"tokens_per_second": 12.0, "time_to_first_token": 0.1, "time_per_output_token": 0.08}
    return {
        "schema": 1,
        "target": {"name": "big<script>", "parameters": 134_515_008, "vocab_size": 49152, "dtype": "float32"},
        "draft": {
            "name": "small",
            "parameters": 42_000_000,
            "vocab_size": 49152,
            "dtype": "float32",
            "head_size": 8192,
        },
        "setup": {
            "device": "cpu",
            "threads": 1,
            "engine": "specdistill",
            "num_draft_tokens": 2,
            "batch_size": 1,
            "latency_prompts": 6,
            "rule": "greedy",
            "predicting_rule": "greedy",
            "temperature": 0.0,
        },
        "acceptance": {
            "tokens_scored": 4096,
            "alpha": alpha,
            "alpha_at_temperature_1": {rule: spread(0.33) for rule in ("sampled", "argmax_draft")},
            "by_position": [0.6, 0.4],
            "by_position_conditional": [0.6, 0.66],
            "mean_acceptance_length": spread(2.0),
            "mean_acceptance_length_macro": 2.1,
            "predicted_mean_acceptance_length": {"1": 1.6, "2": 2.0},
            "acceptance_rate": spread(0.5),
            "by_category": {
                name: {"alpha_greedy": 0.5, "alpha_sampled": 0.4, "mean_acceptance_length": 2.0, "prompts": 4}
                for name in ("writing", "coding")
            },
        },
        "latency": {"baseline": speeds, "speculative": speeds, "speedup": spread(1.1), "engine_efficiency": 0.98},
        "economics": {
            "cost_ratio": 0.2,
            "verify_cost": {"1": 1.0, "2": 1.3, "3": 1.5},
            "round_cost": {"1": 1.5, "2": 1.9},
            "break_even_alpha": 0.45,
            "best_num_draft_tokens": 2,
            "predicted_speedup": {"1": 1.05, "2": 1.1},
            "perfect_draft_speedup": 1.6,
            "verdict": "pays",
            "why": "measured 1.10x",
        },
        "lossless": {
            "checked": True,
            "lossy": False,
            "greedy_identical": True,
            "prompts_compared": 6,
            "differences": [],
        },
        "compare": {
            "draft": {"name": "before", "parameters": 1, "vocab_size": 1, "dtype": "float32"},
            "alpha": alpha,
            "alpha_at_temperature_1": {rule: spread(0.22) for rule in ("sampled", "argmax_draft")},
            "predicted_mean_acceptance_length": spread(1.5),
            "difference": {
                **{rule: spread(0.1) for rule in (*rules, "predicted_mean_acceptance_length")},
                "at_temperature_1": {rule: spread(0.11) for rule in ("sampled", "argmax_draft")},
            },
        },
    }


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
        "pays",
        "measured 1.10x",
        "0.500 [0.480, 0.520]",
        "+0.110 [+0.090, +0.130]",
        "identical to the target",
    ):
        assert text in page


def test_plots_scale_to_the_screen_and_are_deterministic(report):
    page = html_report(report)
    for opening in re.findall(r"<svg[^>]*>", page):
        assert "viewBox" in opening and not re.search(r"\s(width|height)=", opening)
    assert page == html_report(report)


def test_above_temperature_zero_the_rules_are_shown_as_they_are(report):
    for part in (report["acceptance"], report["compare"]):
        del part["alpha_at_temperature_1"]
    del report["compare"]["difference"]["at_temperature_1"]
    assert [row.rule for row in alpha_rows(report)] == ["greedy", "sampled", "argmax_draft"]
    assert "0.600 [0.580, 0.620]" in html_report(report)


def test_report_without_a_second_draft_and_with_one_category(report):
    del report["compare"], report["draft"]["head_size"]
    report["acceptance"]["by_category"].pop("coding")
    report["economics"].update(break_even_alpha=None, verdict="cannot pay")
    report["lossless"].update(greedy_identical=False, differences=[{"prompt": "x", "position": 3, "logit_gap": 1e-6}])
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
    report["lossless"].update(greedy_identical=False, differences=[{"prompt": "x", "position": 3, "logit_gap": 1e-6}])
    bench_tables(report)
    assert "x at token 3 (logit gap 1.0e-06)" in capsys.readouterr().out


def test_training_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    alpha = dict.fromkeys(("greedy", "sampled", "argmax_draft"), 0.25)
    gain = {rule: spread(0.1) for rule in alpha}
    summary = {"heldout_prompts": 9, "output": "out", "best_step": 0, "steps": 5, "gain": gain}
    training_table(summary | {"before": alpha, "after": alpha, "measure": "alpha"})
    shown = capsys.readouterr().out
    assert "+0.100 [+0.080, +0.120]" in shown and "nothing better" in shown


def test_json_has_null_where_there_is_no_number(report):
    report["latency"]["engine_efficiency"] = float("nan")
    report["acceptance"]["by_position"] = [float("inf")]
    parsed = json.loads(json_report(report))
    assert parsed["latency"]["engine_efficiency"] is None and parsed["acceptance"]["by_position"] == [None]


def test_an_engine_that_accepts_otherwise_than_its_rule_is_named(report, capsys):
    def off(mean, low, high):
        report["acceptance"]["prediction"] = {"measured_over_predicted_minus_1": {"mean": mean, "ci95": [low, high]}}
        bench_tables(report)
        return "BEWARE" in capsys.readouterr().out, "verifies wrongly" in html_report(report)

    assert off(-0.13, -0.16, -0.1) == (True, True)
    # Within what chance and the ends of answers explain.
    assert off(-0.03, -0.04, -0.02) == (False, False)
    assert off(-0.13, -0.3, 0.04) == (False, False)
