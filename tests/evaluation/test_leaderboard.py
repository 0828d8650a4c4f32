"""Several drafts in one bench: one leaderboard by hand, one draft in memory at a time, the target read once."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
from bench_report import example_report
from tiny_models import make_model, make_tokenizer, perturbed, save

from specdistill import BenchConfig, bench
from specdistill.cli import main
from specdistill.decoding.costs import Costs, DraftCosts
from specdistill.errors import ConfigError
from specdistill.evaluation import acceptance, compared_drafts, guessed_states
from specdistill.evaluation.acceptance import PromptAcceptance
from specdistill.evaluation.interruption import BenchFailedError
from specdistill.evaluation.leaderboard import ComparedDraft, leaderboard_section
from specdistill.evaluation.report_leaderboard import LeaderboardRow
from specdistill.evaluation.report_setup import ModelFacts
from specdistill.evaluation.statistics import Estimate
from specdistill.models import load
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables
from specdistill.report.wide_table import broken
from specdistill.report.wording_leaderboard import leader, leaderboard_table


def scored(name, kept, cost_ratio):
    """Eight answers of four tokens: the first is not drafted, of the others the first `kept` are accepted."""
    alpha = np.array([1.0] * (kept + 1) + [0.0] * (3 - kept))
    records = [PromptAcceptance({"greedy": alpha}, {"greedy": alpha}, {}, np.zeros(4)) for _ in range(8)]
    return ComparedDraft(
        ModelFacts(name=name, parameters=10, vocab_size=5, dtype="float32"), records, DraftCosts(cost_ratio)
    )


COSTS = Costs(1.0, 0.5, {1: 1.0, 2: 1.2, 3: 1.4})


def test_three_drafts_by_hand():
    """Three tokens after the first.

    ours keeps 1 of them: rounds of one draft token give 2 + 1 tokens, 2 rounds, tau 1.5, so 1.5 / (0.5 + 1.2). exact
    keeps all: one token 2 rounds; two tokens 1 round (3 tokens), so 3 / (2 x 0.9 + 1.4). useless keeps none: tau 1,
    1 / (0.1 + 1.2).
    """
    drafts = scored("ours", 1, 0.5), [scored("useless", 0, 0.1), scored("exact", 3, 0.9)]
    rows = leaderboard_section(*drafts, COSTS, "greedy", 1, 2)
    assert [row.draft for row in rows] == ["exact", "ours", "useless"]
    exact, ours, useless = rows
    assert (exact.best_num_draft_tokens, ours.best_num_draft_tokens, useless.best_num_draft_tokens) == (2, 1, 1)
    assert exact.predicted_speedup == pytest.approx(3 / (2 * 0.9 + 1.4))
    assert ours.predicted_speedup == pytest.approx(1.5 / 1.7) and useless.predicted_speedup == pytest.approx(1 / 1.3)
    assert [row.alpha.mean for row in rows] == [1, 0.5, 0.25]
    assert [row.predicted_mean_acceptance_length.mean for row in rows] == [1.5, 1.5, 1]
    # The others minus --draft, paired.
    assert exact.alpha_minus_draft.mean == 0.5 and useless.alpha_minus_draft.mean == -0.25
    assert exact.tokens_minus_draft.mean == 0 and useless.tokens_minus_draft.mean == -0.5
    assert ours.alpha_minus_draft is None and ours.tokens_minus_draft is None


def test_both_sides_of_a_difference_are_at_the_timed_length():
    """With one draft token both have 1.5 tokens per call; with two, exact has 3. Once as --draft, once compared."""
    for draft, other in (("exact", "ours"), ("ours", "exact")):
        kept = {"exact": 3, "ours": 1}
        rows = leaderboard_section(
            scored(draft, kept[draft], 0.5), [scored(other, kept[other], 0.5)], COSTS, "greedy", 1, 2
        )
        assert next(row for row in rows if row.draft == other).tokens_minus_draft.mean == 0


def test_without_costs_agreement_decides():
    rows = leaderboard_section(scored("ours", 1, None), [scored("exact", 3, None)], None, "greedy", 1, 2)
    assert [row.draft for row in rows] == ["exact", "ours"] and rows[0].predicted_speedup is None
    assert leaderboard_section(scored("ours", 1, None), [], None, "greedy", 1, 2) is None


# ---- the whole bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "good")
    save(make_model(layers=1, seed=9), folder / "bad")
    save(make_model(layers=1, seed=9, tokenizer=make_tokenizer(first_word="zebra")), folder / "foreign")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w{2 * i}", "answer": f"w{i}"} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(folder, *compare, **settings):
    places = {"target": str(folder / "target"), "draft": str(folder / "bad"), "prompts": str(folder / "prompts.jsonl")}
    short = {"max_new_tokens": 12, "max_draft_tokens": 2, "num_draft_tokens": 2}
    return BenchConfig.flat(**(places | short | settings), compare=[str(folder / name) for name in compare])


def test_each_draft_is_scored_as_it_would_be_alone(folder, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    report = bench(config(folder, "good", "target"))
    rows = {row.draft.rpartition("/")[2]: row for row in report.leaderboard}
    assert set(rows) == {"bad", "good", "target"}
    for name, row in rows.items():
        alone = bench(config(folder, draft=str(folder / name)))
        assert tuple(row.alpha) == tuple(alone.acceptance.alpha["greedy"])
        tau = alone.acceptance.predicted_mean_acceptance_length
        assert row.predicted_mean_acceptance_length.mean == pytest.approx(tau[2])
        costs = report.economics.verify_cost
        assert row.predicted_speedup == pytest.approx(
            max(tau[length] / (length * row.cost_ratio + costs[length + 1]) for length in (1, 2))
        )
    assert rows["target"].alpha.mean == 1 and rows["bad"].cost_ratio == report.economics.cost_ratio
    # The first one is where it always was, and differs the other way round.
    assert report.compare.draft.name.endswith("good")
    assert report.compare.difference.greedy.mean == pytest.approx(-rows["good"].alpha_minus_draft.mean)
    assert rows["bad"].alpha_minus_draft is None
    bench_tables(report)
    printed, page = capsys.readouterr().out, html_report(report)
    assert "drafts on the same answers" in printed and "Several drafts" in page
    assert all(row.draft in page for row in report.leaderboard)
    assert all(f"{row.predicted_speedup:.2f} at {row.best_num_draft_tokens}" in printed for row in report.leaderboard)


def test_one_more_draft_is_in_memory_at_a_time_and_the_target_is_read_once(folder, monkeypatch):
    alive, most, reads, first = [], [0], [], acceptance.answer_hidden_states
    real = load.load_model

    def load_model(source, role, **more):
        gc.collect()
        most[0] = max(most[0], 1 + sum(one() is not None for one in alive))
        model = real(source, role, **more)
        alive.append(weakref.ref(model.model))
        return model

    def states(model, sequences, cache=None, **more):
        missing = [one for one in sequences if cache is None or one not in cache]
        reads.extend((model.name.rpartition("/")[2], len(missing)) for _ in [0] if missing)
        return first(model, sequences, cache, **more)

    monkeypatch.setattr(compared_drafts.load, "load_model", load_model)
    for module in (acceptance, guessed_states):
        monkeypatch.setattr(module, "answer_hidden_states", states)
    bench(config(folder, "good", "target"))
    # Target and draft are loaded by the same function.
    assert len(alive) == 4 and most[0] <= 3
    assert [count for name, count in reads if name == "target"] == [8, 8]


def test_a_draft_that_fails_leaves_the_others(folder, monkeypatch, capsys):
    real = load.load_model

    def load_model(source, role, **more):
        if source.name.endswith("good") and role == "compare":
            raise RuntimeError("torn weights")
        return real(source, role, **more)

    monkeypatch.setattr(load, "load_model", load_model)
    with pytest.raises(BenchFailedError, match="good failed: RuntimeError: torn weights") as failed:
        bench(config(folder, "good", "target"))
    report = failed.value.report
    assert [row.draft.rpartition("/")[2] for row in report.leaderboard] == ["target", "bad"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["good", "good"], "--compare names a draft twice"),
        (["good", "bad"], "itself; it is in the leaderboard without that"),
        (["good", "bad/"], "itself; it is in the leaderboard without that"),
        (["good", ""], "--compare is empty"),
        (["good", "nowhere"], "does not exist"),
        (["good", "foreign"], "id 5 is 'w0'"),
    ],
)
def test_a_wrong_name_is_refused_before_any_weights_are_read(folder, names, words, capsys, monkeypatch):
    def refuse(*given, **more):
        raise AssertionError("weights were read")

    monkeypatch.setattr(load, "load_model", refuse)
    places = ["--target", str(folder / "target"), "--draft", str(folder / "bad"), "--max-new-tokens", "8"]
    given = [name and str(folder / name) for name in names]
    assert main(["bench", *places, "--prompts", str(folder / "prompts.jsonl"), "--compare", *given]) == 2
    assert words in capsys.readouterr().err


def test_a_single_name_stays_a_name_in_python_and_yaml(folder):
    assert BenchConfig.flat(target="t", draft="d", compare="c").compare == ("c",)
    assert BenchConfig.flat(target="t", draft="d", compare=None).compare == ()
    assert BenchConfig.flat(target="t", draft="d", compare=["c", "e"]).to_flat()["compare"] == ["c", "e"]
    with pytest.raises(ConfigError, match="twice"):
        BenchConfig.flat(target="t", draft="d", compare=["c", "c"])


def row(name, predicted, difference=None):
    one = Estimate(0.5, 0.4, 0.6)
    return LeaderboardRow(
        draft=name, parameters=1, alpha=one, predicted_mean_acceptance_length=one, predicted_speedup=predicted,
        alpha_minus_draft=difference,
    )  # fmt: skip


def test_numbers_are_whole_in_80_columns(monkeypatch, capsys):
    """Long names are folded; an engine's rows have speeds in place of rounds; alpha's differences need more columns."""
    monkeypatch.setenv("COLUMNS", "80")
    one = row("/a/very/long/path/to/a/directory/of/drafts/x", 1.3, Estimate(-0.123, -0.2, -0.05))
    tokens = Estimate(0.456, 0.4, 0.5)
    ours = replace(one, kind="parallel", round_cost=1.21, best_num_draft_tokens=4, tokens_minus_draft=tokens)
    bench_tables(replace(example_report(), leaderboard=[ours, row("d", 1.2)]))
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("+0.46 [+0.40, +0.50]", "1.21", "1.30 at 4", "0.500*"))
    assert "-0.12 [-0.20, -0.05]" not in printed
    monkeypatch.setenv("COLUMNS", "120")
    bench_tables(replace(example_report(), leaderboard=[ours, row("d", 1.2)]))
    printed = capsys.readouterr().out
    assert "-0.12 [-0.20, -0.05]" in printed and "+0.46 [+0.40, +0.50]" in printed
    monkeypatch.setenv("COLUMNS", "80")
    engine = replace(
        one, predicted_speedup=None, speedup=Estimate(1.1, 1.0, 1.2), speedup_minus_draft=Estimate(0.2, 0.1, 0.3)
    )
    bench_tables(replace(example_report(), leaderboard=[engine]))
    printed = capsys.readouterr().out
    assert "1.10 [1.00, 1.20]" in printed and "+0.20 [+0.10, +0.30]" in printed and "-0.12" not in printed


def test_a_narrow_terminal_breaks_names_behind_separators(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    paths = [f"/work/drafts/of-the-mail-service/{name}-eagle3-head" for name in ("first", "second")]
    rows = [replace(row(path, 1.2), round_cost=1.2, best_num_draft_tokens=4) for path in paths]
    bench_tables(replace(example_report(), leaderboard=rows))
    table = capsys.readouterr().out.split("drafts on the same answers")[1].split("└")[0]
    cells = [line.split("│")[1].strip() for line in table.splitlines() if line.startswith("│")]
    names = [cell for cell in cells if cell]
    assert "".join(names) == "".join(paths) and len(names) > 2
    assert all(name[-1] in "/-" or name.endswith("head") for name in names)
    assert broken("averylongword", 5) == "averylongword", "the table cuts it"


def test_the_alphas_say_where_further_drafts_stand(capsys):
    report = example_report()
    assert report.compare is not None
    three = replace(report, leaderboard=[row(name, 1.2) for name in "dxy"])
    bench_tables(three)
    line = "1 other draft of --compare is in the table of drafts below"
    assert line in capsys.readouterr().out and line in html_report(three)
    two = replace(report, leaderboard=three.leaderboard[:2])
    bench_tables(two)
    assert "of --compare is in the table" not in capsys.readouterr().out + html_report(two)


def test_a_leader_of_another_kind_is_compared_by_tokens_and_round():
    """Its alpha is of the first guess only, and it may lead with fewer tokens per call, by cheaper rounds."""
    own = replace(row("d", 1.2), round_cost=2.2)
    ahead = replace(
        row("x", 1.3, Estimate(-0.1, -0.2, -0.05)), kind="parallel", round_cost=1.2,
        tokens_minus_draft=Estimate(-0.2, -0.3, -0.1),
    )  # fmt: skip
    words = (
        "tokens per target call -0.200 [-0.300, -0.100] against --draft, and a round takes it 1.20 target steps where "
        "--draft takes 2.20"
    )
    assert leader([ahead, own], 4) == f"the fastest as predicted is x: {words}"
    best = [replace(each, best_num_draft_tokens=4) for each in (ahead, own)]
    assert leader(best, 4) == f"the fastest as predicted is x: {words}"
    assert leader(best, 7) == (
        f"the fastest as predicted is x, 1.30 at 4 where --draft has 1.20 at 4. With 7 draft tokens: {words}"
    ), "a leader at a length of its own may be behind at the common one, and the sentence contradicted itself"


def test_the_leader_in_words():
    assert (
        leader([row("d", 1.2), row("x", 1.1, Estimate(-0.1, -0.2, -0.05))], 4)
        == "--draft is the fastest of them, as predicted"
    )
    ahead = leader([row("x", 1.3, Estimate(0.1, 0.05, 0.2)), row("d", 1.2)], 4)
    assert "is x: alpha +0.100 [+0.050, +0.200] over --draft, more than chance" in ahead
    assert "no more than chance" in leader([row("x", 1.3, Estimate(0.1, -0.05, 0.2)), row("d", 1.2)], 4)
    lines = leaderboard_table(
        replace(example_report(), leaderboard=[row("x", 1.3, Estimate(0.1, 0.05, 0.2)), row("d", 1.2)])
    )
    assert lines[0] == (
        "draft",
        "parameters",
        "alpha [95 %]",
        "alpha minus --draft",
        "tokens per call, predicted",
        "speed-up, predicted",
    )
    assert lines[2][3] == "" and leaderboard_table(example_report()) == []
