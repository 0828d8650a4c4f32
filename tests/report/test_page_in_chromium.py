"""The report in a real browser: phone and desk, light and dark; no overflow, request, complaint or pale text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bench_report import OTHER_TARGET, SAMPLE, example_report
from chromium import CHROMIUM, chromium_tab

from specdistill.evaluation.recommendation import Recommendation
from specdistill.evaluation.report import LenienceRow, Partial
from specdistill.evaluation.statistics import Estimate
from specdistill.report.html import html_report

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium")
HOSTILE = "<img src=http://example.org/x onerror=alert(1)>\"'&{{ 7 * 7 }}</style></script>"
ACCEPTED = {False: ("rgb(11, 90, 43)", "rgb(211, 240, 220)"), True: ("rgb(140, 232, 173)", "rgb(21, 58, 36)")}
REJECTED = {False: ("rgb(156, 35, 24)", "rgb(251, 222, 219)"), True: ("rgb(255, 170, 160)", "rgb(71, 30, 26)")}
WINDOWS = [(width, dark) for width in (390, 1280) for dark in (False, True)]
# (text, contrast of its colour with what is painted behind it) of every text that is shown.
CONTRASTS = """(() => {
  const numbers = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const parse = (text) => { const n = numbers(text); return n.length == 3 ? [...n, 1] : n; };
  const light = (c) => { c = c / 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] == 1) break;
    }
    return layers.reverse().reduce((below, over) => below.map((v, i) => v * (1 - over[3]) + over[i] * over[3]),
                                   [255, 255, 255]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || ["STYLE", "SCRIPT"].includes(element.tagName) || element.closest("metadata")) continue;
    if (!element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = luminance(parse(element.closest("svg") ? style.fill : style.color));
    const paper = luminance(behind(element));
    found.push([text, (Math.max(colour, paper) + 0.05) / (Math.min(colour, paper) + 0.05)]);
  }
  return found;
})()"""


def row(lenience):
    value = Estimate(0.5, 0.4, 0.6)
    return LenienceRow(
        lenience=lenience, mean_acceptance_length=value, acceptance_rate=value, speedup=value, changed_tokens=value
    )


def full_report():
    """Every section, with names and texts that would break a page that trusts them."""
    report = example_report()
    token = replace(SAMPLE.tokens[0], text=HOSTILE, by="draft", proposed=HOSTILE)
    long = replace(SAMPLE, prompt_id=HOSTILE, prompt=HOSTILE + "long" * 200, tokens=[*SAMPLE.tokens * 12, token])
    return replace(
        report,
        target=replace(report.target, name="/very/long" * 20 + "/target"),
        draft=replace(report.draft, name=f"org/{HOSTILE}"),
        compare_target=OTHER_TARGET,
        lenience_sweep=[row(1.0), row(0.5)],
        acceptance=replace(
            report.acceptance, by_category={HOSTILE: next(iter(report.acceptance.by_category.values()))}
            | report.acceptance.by_category,
        ),
        partial=Partial(prompts_done=6, prompts_asked=8, why=f"timing failed: {HOSTILE}", left_out={"score": HOSTILE}),
        samples=[SAMPLE, long, SAMPLE],
        recommendation=Recommendation(
            serve="ngram", num_draft_tokens=3, why=f"1.20x [1.10, 1.31]. {HOSTILE}.", next="specdistill " + "x" * 90
        ),
    )  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_report(full_report()))
    return path


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium_tab(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(params=WINDOWS, ids=lambda window: f"{window[0]}-{'dark' if window[1] else 'light'}")
def opened(request, tab, page):
    """The page in one window with everything unfolded, and whether that is dark."""
    width, dark = request.param
    tab.open(page, width, dark)
    tab.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    return tab, dark


def test_nothing_overflows_the_window(opened):
    tab, _ = opened
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # Also inside: only what may scroll is wider than its box.
    wide = "[...document.querySelectorAll('body *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1"
    assert tab.evaluate(f"{wide} && !e.closest('.wide')).map((e) => e.outerHTML.slice(0, 200))") == []


def test_the_page_asks_for_nothing_and_complains_of_nothing(opened, page):
    tab, _ = opened
    assert tab.requests == [page.as_uri()] and tab.complaints == []
    assert tab.evaluate("document.querySelectorAll('script, img, link, iframe').length") == 0


def test_accepted_and_rejected_tokens_have_their_colours(opened):
    tab, dark = opened
    colours = "[...document.querySelectorAll('.answer .{}')].map((e) => [getComputedStyle(e).color, "
    colours += "getComputedStyle(e).backgroundColor, getComputedStyle(e).textDecorationLine])"
    for kind, wanted, line, count in (
        ("accepted", ACCEPTED[dark], "none", 4 * 14 + 1),
        ("rejected", REJECTED[dark], "line-through", 2 * 14 + 1),
    ):
        found = tab.evaluate(colours.replace("{}", kind))
        assert found == [[*wanted, line]] * count
    own = tab.evaluate("getComputedStyle(document.querySelector('.answer .own')).backgroundColor")
    assert own == "rgba(0, 0, 0, 0)"
    first = tab.evaluate("document.querySelector('.answer').innerText")
    assert first == "The quick brown dog fox says <b>…🙂"
    titles = tab.evaluate("[...document.querySelectorAll('.answer')][0].querySelector('.rejected').title")
    assert titles == "rejected: draft 0.50, target below 0.01"


def test_every_text_can_be_read(opened):
    tab, _ = opened
    contrasts = tab.evaluate(CONTRASTS)
    texts = " ".join(text for text, _ in contrasts)
    assert len(contrasts) > 150 and "predicted" in texts and HOSTILE in texts and "seed" in texts
    assert [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5] == []


def test_the_test_sees_pale_text_requests_complaints_and_overflow(tab, tmp_path):
    """Planted errors."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<p style='color: #999'>pale</p><div style='width: 3000px'>wide</div><img src='missing.png'>"
        "<script>console.log('said')</script>"
    )
    tab.open(page, 390, False)
    assert [text for text, ratio in tab.evaluate(CONTRASTS) if ratio < 4.5] == ["pale"]
    assert len(tab.requests) == 2 and any("said" in each for each in tab.complaints)
    assert tab.evaluate("document.documentElement.scrollWidth > innerWidth")
