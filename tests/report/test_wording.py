"""The verdict in words, and short names of models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_report import OTHER_TARGET, example_report

from specdistill.evaluation.recommendation import Recommendation
from specdistill.report.html import html_report
from specdistill.report.wording_names import short_name, short_names
from specdistill.report.wording_verdict import verdict


def recommended(serve, tokens, why, next="Measure it in vLLM."):
    found = Recommendation(serve=serve, num_draft_tokens=tokens, why=why, next=next)
    return replace(example_report(), recommendation=found)


def test_the_recommendation_is_the_headline():
    found = verdict(recommended("ngram", 3, "1.20x [1.10, 1.31]; the draft adds nothing.", "specdistill bench --x"))
    assert (found.headline, found.why) == ("Serve n-gram with 3 tokens", "1.20x [1.10, 1.31]; the draft adds nothing")
    assert found.is_command and found.good
    assert verdict(recommended("draft", 1, "it pays")).headline == "Serve the draft with 1 token"
    found = verdict(recommended("nothing", None, "nothing pays"))
    assert (found.headline, found.good, found.is_command) == ("Serve the plain target", False, False)
    assert not verdict(recommended("undecided", 2, "too few")).good
    both = verdict(recommended("ngram+draft", 3, "it pays"))
    assert both.headline == "Serve n-gram, else the draft, with 3 tokens"


def test_a_lossy_draft_is_called_so_beside_exact_ways():
    report = recommended("draft", 3, "It pays.")
    lossy = replace(report, lossless=replace(report.lossless, lossy=True))
    assert "LOSSY" in verdict(lossy).why and "LOSSY" not in verdict(report).why
    copied = replace(lossy, recommendation=replace(lossy.recommendation, serve="ngram"))
    assert "LOSSY" not in verdict(copied).why


@pytest.mark.parametrize(
    ("word", "headline"),
    [
        ("pays", "Serve the draft with 2 tokens: 1.10 [1.08, 1.12] times as fast"),
        ("does not pay", "Don't serve this draft: it does not pay"),
        ("cannot pay", "Don't serve this draft: it cannot pay here"),
        ("undecided", "Undecided"),
        ("unknown", "No verdict: decoding was not timed"),
    ],
)
def test_without_a_recommendation_the_verdict_on_the_draft_is_the_headline(word, headline):
    report = example_report()
    report = replace(report, economics=replace(report.economics, verdict=word))
    assert verdict(report).headline == headline and f"<b>{word}</b>" in html_report(report)


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("/models/draft/", "draft"),
        ("C:\\models\\draft", "draft"),
        ("x/model.Q4_1.gguf", "model.Q4_1.gguf"),
        ("gpt2", "gpt2"),
        ("/cache/models--org--name/snapshots/0a1b2c", "name"),
        ("/", "/"),
    ],
)
def test_a_short_name_is_the_last_part(name, short):
    assert short_name(name) == short


def test_models_that_end_alike_keep_what_tells_them_apart():
    report = example_report()
    report = replace(
        report,
        target=replace(report.target, name="/runs/a/final"),
        draft=replace(report.draft, name="/runs/b/final"),
        compare=replace(report.compare, draft=replace(report.draft, name="cut")),
        compare_target=OTHER_TARGET,
    )
    assert short_names(report) == ("a/final", "b/final", "cut", "full precision")
    # The same model twice has no other name.
    same = replace(report, draft=report.target, compare=None, compare_target=None)
    assert short_names(same) == ("final", "final", None, None)


def test_full_paths_stand_in_the_setup_only():
    report = example_report()
    long = replace(
        report, target=replace(report.target, name="/a/path/to/big"), draft=replace(report.draft, name="o/s")
    )
    page = html_report(long)
    head, _, setup = page.partition("<h2>Setup</h2>")
    assert "/a/path/to" not in head and "/a/path/to/big" in setup and ">s<" in head and "o/s" in setup
