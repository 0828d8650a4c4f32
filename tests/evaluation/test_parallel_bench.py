"""The bench of a parallel draft: what is predicted is counted, and a round costs one pass of the draft."""

from __future__ import annotations

import json
import shutil
from html import unescape
from types import SimpleNamespace

import pytest
import torch
from bench_report import example_report
from parallel_drafts import MASK, PROMPTS, guesses, make_parallel, taught_pair
from tiny_models import make_model, save

from specdistill import BenchConfig
from specdistill.cli import app
from specdistill.data.prompt import Prompt
from specdistill.decoding import Sampling, SpeculativeDecoder
from specdistill.decoding.costs import Costs, DraftCosts
from specdistill.errors import ConfigError
from specdistill.evaluation import acceptance, economics
from specdistill.evaluation.copying_walk import walk_copies
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.rounds import expected_rounds
from specdistill.evaluation.samples import make_sample
from specdistill.evaluation.statistics import Estimate
from specdistill.files.parallel_drafting import trained_for
from specdistill.progress import Quiet
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables
from specdistill.report.wording import estimate
from specdistill.serving import parallel_gates
from specdistill.settings.parts import Unasked


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target, draft = taught_pair()
    save(target, folder / "target")
    save(draft, folder / "draft")
    save(make_parallel(layers=1, seed=9), folder / "bad")
    words = [" ".join(f"w{token - 5}" for token in prompt) for prompt in PROMPTS[:8]]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in words))
    return folder


def bench(files, draft="draft", **settings):
    defaults = {
        "prompts": str(files / "prompts.jsonl"),
        "raw_prompts": True,
        "max_new_tokens": 30,
        "max_draft_tokens": 5,
        "num_draft_tokens": 3,
        "baselines": "none",
    }
    return measure_draft(
        BenchConfig.flat(target=str(files / "target"), draft=str(files / draft), **(defaults | settings))
    )


@pytest.fixture(scope="module")
def report(files):
    return bench(files, compare=(str(files / "bad"),), batch_sizes=(1, 2), baselines="all")


def test_predicted_tokens_per_call_are_those_that_were_counted(report):
    found = report.acceptance
    assert report.lossless.greedy_identical and report.draft.mask_id == MASK
    assert found.predicted_mean_acceptance_length[3] == pytest.approx(found.mean_acceptance_length.mean)
    assert found.mean_acceptance_length.mean > 1.5
    by_depth = found.alpha_by_depth["greedy"]
    assert len(by_depth) == 5 and by_depth[0] == pytest.approx(found.alpha["greedy"].mean)


def test_a_round_costs_one_pass_and_the_check(report):
    found = report.economics
    assert set(found.draft_pass_cost) == {1, 2, 3, 4, 5}
    for length, drafting in found.draft_pass_cost.items():
        assert found.round_cost[length] == pytest.approx(drafting + found.verify_cost[length + 1])
        tau = report.acceptance.predicted_mean_acceptance_length[length]
        assert found.predicted_speedup[length] == pytest.approx(tau / found.round_cost[length])
    assert "guessing 3 draft tokens in one pass costs" in found.why and "alpha" not in found.why
    row = report.load.batch[1]
    assert row.round_cost != pytest.approx(3 * found.cost_ratio + row.verify_cost)


def test_what_is_said_names_the_pass(report, capsys):
    bench_tables(report)
    said = " ".join(capsys.readouterr().out.split())
    assert f"guessed in one pass behind mask token {MASK}; alpha by depth (greedy): " in said
    assert "guessing 3 tokens in one pass" in said and "draft step 0" not in said
    page = html_report(report)
    assert "Guessing 3 tokens in one pass costs" in page and "alpha by depth (greedy)" in page


def test_numbers_say_which_draft_length_and_which_guesses_they_are_of(report, capsys):
    bench_tables(report)
    said, page = " ".join(capsys.readouterr().out.split()), " ".join(unescape(html_report(report)).split())
    found = report.economics
    best, most = found.best_num_draft_tokens, found.perfect_num_draft_tokens
    assert most in found.predicted_speedup and report.to_json()["economics"]["perfect_num_draft_tokens"] == most
    tau, speed = report.acceptance.predicted_mean_acceptance_length[3], found.predicted_speedup
    for text in (
        f"predicted {tau:.3f} with 3 draft tokens;",
        f"predicted: {speed[3]:.2f} with 3 draft tokens; best {speed[best]:.2f} with",
        f"a perfect draft {found.perfect_draft_speedup:.2f} with {most} token",
    ):
        assert text in said, text
    assert f"A perfect draft would give {found.perfect_draft_speedup:.2f} with {most} draft token" in page
    assert "tokens per target call, predicted with 3 draft tokens" in page
    assert f"a perfect draft would give {found.perfect_draft_speedup:.2f}x with {most} draft token" in found.why
    for text in (
        f"{found.break_even_alpha:.3f}, if every guess of a round had it (this draft's alpha falls with depth)",
        "alpha by depth is a mean over every place where a round could start; the conditional acceptance by position "
        "is of real rounds, and only of those that kept all tokens before",
    ):
        assert text in said and text in page, text


def test_an_ordinary_drafts_break_even_is_of_all_its_tokens(capsys):
    found = example_report()
    bench_tables(found)
    assert "break-even alpha 0.450\n" in capsys.readouterr().out and "falls with depth" not in html_report(found)


def test_ngrams_before_a_parallel_draft_are_predicted_as_counted(report):
    both = report.baselines["ngram+draft"]
    assert both.predicted_speedup > 0 and both.speedup.mean > 0


def test_leaderboard_rows_have_pass_costs(report):
    rows = {row.draft.rsplit("/", 1)[1]: row for row in report.leaderboard}
    assert rows["draft"].predicted_speedup == pytest.approx(max(report.economics.predicted_speedup.values()))
    assert rows["bad"].predicted_speedup < rows["draft"].predicted_speedup


def test_kinds_are_compared_by_what_a_round_gives_and_costs(files, capsys, monkeypatch):
    """An ordinary draft pays a step for each token, a parallel one a pass for all: both rows say what a round costs."""
    save(make_model(layers=1, seed=5), files / "step-by-step")
    found = bench(files, compare=(str(files / "step-by-step"),))
    rows = {row.draft.rsplit("/", 1)[1]: row for row in found.leaderboard}
    ours, other = rows["draft"], rows["step-by-step"]
    assert (ours.kind, ours.cost_ratio, other.kind) == ("parallel", None, None) and found.draft.kind == "parallel"
    assert ours.round_cost == pytest.approx(found.economics.round_cost[3])
    assert other.round_cost == pytest.approx(3 * other.cost_ratio + found.economics.verify_cost[4])
    monkeypatch.setenv("COLUMNS", "80")
    bench_tables(found)
    said, page = capsys.readouterr().out, html_report(found)
    difference = estimate(other.tokens_minus_draft, 2, "+")
    for text in (f"{ours.alpha.mean:.3f}*", f"{ours.round_cost:.2f}", f"{other.round_cost:.2f}", difference):
        assert text in said, text
    assert estimate(other.tokens_minus_draft, sign="+") in page
    words = "with 3 draft tokens; round: drafting them in one pass or in a step each, and checking"
    for text in (words, "* alpha of a round's first guess only", "raft: of a round's first guess only"):
        assert text in said and text in unescape(page), text


def test_samples_show_the_guess_of_the_round():
    """A token's q, and that of what was rejected in its place, come from the row that guessed it."""
    target, draft = taught_pair()
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=4, sampling=Sampling())
    answer = decoder.generate([PROMPTS[0]], max_new_tokens=30, seeds=[5])[0]
    prompt = Prompt(id="a", messages=({"role": "user", "content": "w1"},), category="c")
    sample = make_sample(target, draft, prompt, PROMPTS[0], answer, Sampling())
    start, rejected = 1, 0
    for entry in answer.rounds:
        logits = guesses(draft, [*PROMPTS[0], *answer.token_ids[:start]], entry.emitted)
        for depth in range(entry.emitted):
            token, chances = sample.tokens[start + depth], logits[depth].softmax(-1)
            assert token.q == pytest.approx(float(chances[answer.token_ids[start + depth]]), abs=1e-3)
            if token.proposed_q is not None:
                assert token.proposed_q == pytest.approx(float(chances[entry.rejected]), abs=1e-3)
                rejected += depth > 0
        start += entry.emitted
    assert rejected


def test_one_by_one_is_the_ordinary_draft(files, capsys):
    found = bench(files, one_by_one=True)
    words = "used as ordinary ones, which guess one token per pass (--one-by-one)"
    bench_tables(found)
    assert words in capsys.readouterr().out and words in html_report(found)
    assert found.to_json()["setup"]["one_by_one"] is True
    assert found.draft.mask_id is None and found.economics.draft_pass_cost is None
    assert found.acceptance.alpha_by_depth is None and "a draft step costs" in found.economics.why
    assert found.acceptance.predicted_mean_acceptance_length[3] == pytest.approx(
        found.acceptance.mean_acceptance_length.mean
    )


@pytest.mark.parametrize("settings", [{"draft_length": "auto"}, {"draft_length": "confidence"}, {"temperature": 0.5}])
def test_other_lengths_and_sampling_run(files, settings):
    found = bench(files, num_prompts=6, num_draft_tokens=0, **settings)
    assert found.latency.is_timed and found.lossless.greedy_identical
    assert found.economics.draft_pass_cost is not None


def test_a_lenience_sweep_is_refused_before_weights_are_read(files, monkeypatch):
    monkeypatch.setattr("specdistill.evaluation.measure.load_pair", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=r"--lenience-sweep counts changed tokens .* add --one-by-one"):
        bench(files, temperature=1.0, lenience_sweep=(0.5,))


def test_economics_by_hand():
    """Three guessed tokens, 2.5 tokens per call: the pass reads 2.5 new tokens, half-way between 0.4 and 0.8."""
    costs = Costs(1.0, 0.3, {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.4}, {1: (0.3, 0.3), 3: (0.4, 0.8)})
    found = economics.judge(costs, {1: 1.5, 3: 2.5}, 3, 0.6, Estimate(1.2, 1.1, 1.3))
    assert found.round_cost == {1: pytest.approx(1.4), 3: pytest.approx(0.6 + 1.4)}
    assert found.predicted_speedup[3] == pytest.approx(1.25) and found.best_num_draft_tokens == 3
    # A perfect draft keeps 3 and reads 4: 4 / (0.8 + 1.4).
    assert found.perfect_draft_speedup == pytest.approx(4 / 2.2) and found.perfect_num_draft_tokens == 3
    assert "it needs 2.00 tokens per target call and is predicted 2.50" in found.why and found.verdict == "pays"


def test_a_walk_with_copies_by_hand():
    """Five tokens: at token 1 a copy of 2 is kept whole; the draft is asked at tokens 4 and maybe 5."""
    costs = Costs(1.0, 0.3, {1: 1.0, 2: 1.1, 3: 1.2}, {1: (0.3, 0.5), 2: (0.4, 0.8)})
    copies = [(2, 2), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]
    table = torch.full((7, 2), 0.5).numpy()
    found = walk_copies(copies, 7, 2, costs, table)
    # The copy: 3 tokens for 1.2. Then a round at 4 with two guesses (7 - 4 - 1): ends at 5 (1/2), 6 (1/4), 7 (1/4).
    # At 5 one guess fits: ends at 6 (1/2) or 7 (1/2). At 6 none fits: a plain step.
    asked = 1 + 0.5
    plain = 0.25 + 0.5 * 0.5
    assert found.rounds == pytest.approx(1 + asked + plain)
    new = 6 / asked
    drafting = costs.drafting.of_round(2, new) + 0.5 * costs.drafting.of_round(1, new)
    assert found.cost == pytest.approx(1.2 + (1.2 + 0.5 * 1.1 + plain) + drafting)
    assert isinstance(costs.drafting, DraftCosts) and expected_rounds(table, 2) > 2
    assert acceptance.ALPHA_RULES[0] == "greedy"


class Said(Quiet):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.mark.parametrize("compared", [False, True])
def test_one_by_one_is_refused_where_every_draft_is_ordinary(files, monkeypatch, compared):
    """Before weights are read; one parallel draft is enough."""
    if not (files / "plain").exists():
        save(make_model(layers=1, seed=5), files / "plain")
        save(make_model(layers=1, seed=6), files / "plain-too")
    found = bench(files, "plain", one_by_one=True, num_prompts=2, compare=(str(files / "bad"),))
    assert [row.draft.rsplit("/", 1)[1] for row in found.leaderboard] and found.setup.one_by_one
    monkeypatch.setattr("specdistill.evaluation.measure.load_pair", lambda *_, **__: pytest.fail("weights were read"))
    none = "none of the drafts is one: each" if compared else "the draft is none: it"
    with pytest.raises(ConfigError, match=rf"--one-by-one is for parallel drafts, and {none} names .* leave it out"):
        bench(files, "plain", one_by_one=True, compare=(str(files / "plain-too"),) if compared else ())


@pytest.mark.parametrize(("flags", "kind"), [(["--rule", "greedy"], Unasked), (["--max-draft-tokens", "8"], int)])
def test_the_command_line_tells_a_default_from_an_8_that_was_asked_for(flags, kind):
    words = ["bench", "--target", "t", "--draft", "d", *flags]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert type(bound.arguments["config"].acceptance.max_draft_tokens) is kind


def trained_for_12(files):
    """The draft of --draft with another number in its config.json."""
    folder = files / "twelve"
    if not folder.exists():
        shutil.copytree(files / "draft", folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"parallel_draft_tokens": 12}))
    return "twelve"


@pytest.mark.parametrize(
    ("flags", "longest"),
    [
        ({}, 12),
        ({"max_draft_tokens": 8}, 8),
        ({"max_draft_tokens": 3}, 3),
        ({"num_draft_tokens": 14}, 14),
        ({"one_by_one": True}, 8),
    ],
)
def test_the_lengths_that_a_draft_was_trained_for_are_covered(files, flags, longest):
    """Unless --max-draft-tokens says less: then that is obeyed, 8 too."""
    given = {"prompts": str(files / "prompts.jsonl"), "raw_prompts": True, "max_new_tokens": 20, "num_prompts": 2}
    flags = {"latency_prompts": 1, "baselines": "none", "num_draft_tokens": 2} | flags
    places = {"target": str(files / "target"), "draft": str(files / trained_for_12(files))}
    found = measure_draft(BenchConfig.flat(**given, **places, **flags))
    assert max(found.economics.predicted_speedup) == longest
    assert max(found.acceptance.predicted_mean_acceptance_length) == longest


def test_a_compared_draft_is_covered_too(files):
    given = {"prompts": str(files / "prompts.jsonl"), "raw_prompts": True, "max_new_tokens": 20, "num_prompts": 2}
    places = {"target": str(files / "target"), "draft": str(files / "draft")}
    config = BenchConfig.flat(**given, **places, compare=str(files / trained_for_12(files)), latency_prompts=1)
    assert max(measure_draft(config).economics.predicted_speedup) == 12
    # A copy of settings keeps that nobody asked for 8, and YAML gets a plain number.
    assert isinstance(config.replace(seed=1).acceptance.max_draft_tokens, Unasked)
    assert type(config.to_flat()["max_draft_tokens"]) is int


@pytest.mark.parametrize(("length", "said"), [(7, True), (5, False), (3, False)])
def test_more_tokens_than_were_trained_are_said_once(files, capsys, length, said):
    """In the words of check: before the work, and once in the report."""
    progress = Said()
    given = {"prompts": str(files / "prompts.jsonl"), "raw_prompts": True, "max_new_tokens": 20, "num_prompts": 2}
    places = {"target": str(files / "target"), "draft": str(files / "draft")}
    found = measure_draft(BenchConfig.flat(**given, **places, num_draft_tokens=length, latency_prompts=1), progress)
    words = f"the draft was trained to guess 5 tokens in one pass, and this bench asks for {length}"
    assert sum(words in line for line in progress.lines) == said
    bench_tables(found)
    assert capsys.readouterr().out.count(words) == said and html_report(found).count(words) == said
    assert found.to_json()["draft"]["parallel_draft_tokens"] == 5


def test_check_says_it_in_the_same_words():
    model = SimpleNamespace(name="d", is_gguf=False, config={"vocab_size": 72, "pard_token": MASK})
    model.config["parallel_draft_tokens"] = 5
    verdict = SimpleNamespace(engine="vllm", refusals=[], warnings=[])
    parallel_gates.remark([verdict], SimpleNamespace(vocab_size=72), model, SimpleNamespace(num_draft_tokens=7))
    (line,) = verdict.warnings
    assert line.startswith(trained_for(5, 7, "this launch") + ";")
