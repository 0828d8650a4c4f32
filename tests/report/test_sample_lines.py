"""Sample answers in the terminal: coloured, and readable without colours."""

from __future__ import annotations

import io
from dataclasses import replace

from bench_report import SAMPLE, example_report
from rich.console import Console

from specdistill.report.samples import print_samples
from specdistill.report.terminal import bench_tables
from specdistill.report.wording_samples import probability, token_title


def printed(sample, **settings):
    console = Console(file=io.StringIO(), markup=False, emoji=False, highlight=False, **settings)
    print_samples(console, [sample])
    return console.file.getvalue()


def test_without_colours_accepted_tokens_stand_in_brackets_and_rejected_ones_are_struck():
    text = printed(SAMPLE, force_terminal=False)
    assert "The[ quick brown]~~ dog~~ fox[ says <b>]~~…~~🙂" in text and "\x1b" not in text
    assert "[accepted] ~~rejected~~" in text
    assert "p1 (7 tokens: 4 from the draft, 3 from the target; 2 draft tokens rejected)" in text
    # NO_COLOR leaves bold and strike, which not every terminal shows: marks then too.
    assert "~~ dog~~" in printed(SAMPLE, force_terminal=True, color_system="standard", no_color=True)


def test_in_colours_accepted_is_green_and_rejected_is_red_and_struck_through():
    text = printed(SAMPLE, force_terminal=True, color_system="standard", legacy_windows=False)
    assert "\x1b[32m quick\x1b[0m" in text and "\x1b[9;31m dog\x1b[0m" in text and "~~" not in text
    assert "\x1b[0m fox" in text, "the target's own token is plain"


def test_an_answer_commands_no_terminal():
    token = replace(SAMPLE.tokens[0], text="\x1b]0;title\x07a\r\x9b31m\n\tb", proposed="\x1b[2J")
    hostile = replace(SAMPLE, prompt="\x1b[31mred", prompt_id="\x1b[1m", tokens=[token])
    text = printed(hostile, force_terminal=False)
    assert not {"\x1b", "\x07", "\r", "\x9b"} & set(text) and "␛]0;title␇a" in text and "\n        b" in text


def test_the_bench_prints_as_many_as_are_asked_for(capsys):
    report = replace(example_report(), samples=[SAMPLE, replace(SAMPLE, prompt_id="p2")])
    bench_tables(report)
    assert "~~" not in capsys.readouterr().out
    bench_tables(report, 1)
    shown = capsys.readouterr().out
    assert "p1 (" in shown and "p2 (" not in shown
    bench_tables(replace(report, samples=None), 1)
    assert "no sample answers: decoding was not timed" in capsys.readouterr().out


def test_probabilities_in_words():
    titles = [token_title(token) for token in SAMPLE.tokens]
    assert titles[0] == "target's own token: target 0.90, draft 0.80"
    assert titles[1] == "accepted draft token: draft 0.70, target 0.60"
    assert titles[3].endswith("rejected draft token: draft 0.50, target below 0.01")
    assert (probability(0.0), probability(0.006), probability(None)) == ("below 0.01", "0.01", "unknown")
