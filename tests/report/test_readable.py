"""Reports that are hard to read: many numbers at 80 columns, numbers of one, answers of white space, full bars."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from bench_report import example_report
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from specdistill.evaluation.report_samples import Sample, SampleToken
from specdistill.report import plots
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables
from specdistill.report.wording_samples import sample_counts


def printed(report, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    bench_tables(report)
    return capsys.readouterr().out


@pytest.mark.parametrize(("width", "pieces"), [(80, 2), (160, 1), (40, 4)])
def test_acceptance_of_twelve_draft_tokens_is_whole(capsys, monkeypatch, width, pieces):
    """At 80 columns every cell was an ellipsis."""
    report = example_report()
    joint = [0.912 - 0.05 * place for place in range(12)]
    conditional = [0.913 - 0.01 * place for place in range(12)]
    many = replace(report.acceptance, by_position=joint, by_position_conditional=conditional)
    text = printed(replace(report, acceptance=many), capsys, monkeypatch, width)
    lines = text.splitlines()
    tables = [line for line in lines if line.startswith("┃ position")]
    assert len(tables) == pieces
    assert " ".join(line.strip("┃").replace("┃", " ") for line in tables).split() == (
        [word for piece in range(pieces) for word in ("position", *map(str, _share(12, pieces, piece)))]
    )
    for name, values in (("joint", joint), ("conditional", conditional)):
        cells = [word for line in lines if line.startswith(f"│ {name} ") for word in line.split() if word[0] in "01"]
        assert cells == [f"{value:.3f}" for value in values]
    assert all(len(line) <= width for line in lines if line[:1] in "┃│┏┡└")


def test_an_acceptance_that_nothing_tells_is_a_dash(capsys, monkeypatch):
    """It was an acceptance of 0.000."""
    report = example_report()
    counted = replace(report.acceptance, by_position=[0.5, 0.0, math.nan], by_position_conditional=[0.5, 0.0, math.nan])
    rows = printed(replace(report, acceptance=counted), capsys, monkeypatch, 160).splitlines()
    for name in ("joint", "conditional"):
        (row,) = [row for row in rows if row.startswith(f"│ {name} ")]
        assert row.strip("│").split()[1:] == ["│", "0.500", "│", "0.000", "│", "-"]


def _share(count, pieces, piece):
    each = count // pieces
    return range(1 + piece * each, 1 + (piece + 1) * each)


def test_one_draft_token_is_singular(capsys, monkeypatch):
    report = example_report()
    economics = replace(report.economics, best_num_draft_tokens=1)
    text = printed(replace(report, economics=economics), capsys, monkeypatch, 200)
    assert "; best 1.05 with 1 token;" in text and "1 draft tokens" not in text
    token = SampleToken(text=" a", by="target", p=0.5, q=0.1, proposed=" b", proposed_p=0.1, proposed_q=0.5)
    sample = Sample(prompt_id="p", category="c", prompt="a", tokens=[token], shortened=False)
    assert sample_counts(sample) == "1 token: 0 from the draft, 1 from the target; 1 draft token rejected"
    assert sample_counts(replace(sample, tokens=[token] * 2)).endswith("; 2 draft tokens rejected")


def test_an_answer_of_white_space_can_be_seen():
    """It was a large blank box on the page."""
    tokens = [SampleToken(text=text, by="target", p=0.5, q=0.1) for text in ("\n\n", " \n", "\t")]
    sample = Sample(prompt_id="p", category="c", prompt="a", tokens=tokens, shortened=False)
    page = html_report(replace(example_report(), samples=[sample]))
    answer = page.partition('<div class="answer"')[2].partition("</div>")[0]
    assert [part.partition("<")[0] for part in answer.split('">')[2:]] == ["\u21b5\u21b5", "\u00b7\u21b5", "\u21e5"]
    written = replace(sample, tokens=[*tokens, SampleToken(text="a", by="target", p=0.5, q=0.1)])
    assert "\u21b5" not in html_report(replace(example_report(), samples=[written]))


def test_the_legend_stands_above_bars_of_one():
    """Inside the axes it lay on them."""
    report = example_report()
    ones = replace(report.acceptance, by_position=[1.0, 1.0], by_position_conditional=[1.0, 1.0])
    figure = Figure()
    axes = figure.subplots()
    plots._positions(axes, replace(report, acceptance=ones))
    FigureCanvasAgg(figure).draw()
    assert axes.get_legend().get_window_extent().y0 >= axes.get_window_extent().y1
