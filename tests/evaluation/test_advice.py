"""Advice by hand: break-even points, time of training, what another target's draft would bring, and the order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_model

from specdistill.data import Example
from specdistill.decoding.costs import Costs
from specdistill.evaluation.advice import CountedAnswers
from specdistill.evaluation.advice_known import Here, Timed
from specdistill.evaluation.advice_options import make_options, timed_kind
from specdistill.evaluation.answer_kind import AnswerKind, answer_kind
from specdistill.evaluation.economics import break_even_tokens
from specdistill.evaluation.known_results import known_results, parse_results
from specdistill.evaluation.report_baselines import Baseline, Overlap
from specdistill.evaluation.statistics import Estimate
from specdistill.evaluation.training_pace import ParallelPace, TrainingPace
from specdistill.progress import Quiet

RESULTS = Path(__file__).parents[2] / "benchmarks/results"
CHECKS = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.3}
STEPS = Costs(target_step_seconds=0.1, draft_step_seconds=0.02, verify_cost=CHECKS)
"""A draft step costs 0.2."""
PASSES = dataclasses.replace(STEPS, draft_passes={1: (0.1, 0.2), 2: (0.15, 0.35), 3: (0.2, 0.5)})


def point(value: float) -> Estimate:
    return Estimate(value, value, value)


def table(*others: dict[str, Any], **changes: Any):
    """A table of one job, and a draft of 2 layers after 1000 and 4000 tokens; and others like it, by their changes."""
    alpha = {rule: {"mean": 0.5, "ci95": [0.4, 0.6]} for rule in ("greedy", "sampled", "argmax_draft")}
    early = {"source": "r.json, early", "tokens": 1000, "seeds": 1, "prompts": 9, "alpha": alpha, "tokens_per_call": {}}
    late = early | {"source": "r.json, late", "tokens": 4000, "tokens_per_call": {"greedy": {"1": 1.8, "2": 2.4}}}
    draft = {
        **{"job": "mails", "study": "r.json", "target": "T", "target_parameters": 100},
        **{"kind": "independent", "layers": 2},
        "points": [early, late],
    }
    job = {"name": "mails", "certainty": 0.9, "suffix_tokens_per_call": 2.0, "source": "k.json, mails"}
    return parse_results({"jobs": {"mails": job}, "drafts": [draft | each for each in (changes, *others)]})


def row(source: str, tokens: int, alpha: float, *calls: float, **facts: Any) -> dict[str, Any]:
    """A point at temperature 0, with tokens per call of lengths from 1 on."""
    predicted = {"greedy": {str(length): value for length, value in enumerate(calls, start=1)}}
    one = {"greedy": {"mean": alpha, "ci95": [alpha, alpha]}}
    return {
        **{"source": source, "tokens": tokens, "seeds": 1, "prompts": 9, "alpha": one, "tokens_per_call": predicted},
        **facts,
    }


def counted(certainty: float = 0.95, suffix: float = 2.2, ngram: float = 1.3) -> CountedAnswers:
    kind = AnswerKind(
        certainty=point(certainty), suffix_tokens_per_call=point(suffix), copied_4grams=point(0.1), answers=12
    )
    way = Baseline(settings={"num_draft_tokens": 3}, mean_acceptance_length=point(1.4), predicted_speedup=ngram or None)
    overlap = Overlap(prompt_answer_bleu4=point(0.1), copied_4grams=point(0.1))
    return CountedAnswers(source="target", answers=12, tokens=600, kind=kind, overlap=overlap, ways={"ngram": way})


PACE = TrainingPace(trains=100.0, reads=100.0, writes=50.0, text=2000.0, read_once=True)


def options(costs=STEPS, kind="independent", layers=2, pace=PACE, known=None, minutes=10.0, parameters=200, **answers):
    """Options of one draft beside an n-gram; no more than 3 draft tokens."""
    timed = timed_kind(kind, layers, make_model(layers=1), costs, 3)
    here = Here(
        parameters=parameters,
        rule="greedy",
        max_draft_tokens=3,
        minutes=minutes,
        known=known or table(),
        next_of=lambda name, draft, length, pace: [f"{name} {length}"],
    )
    return {one.name: one for one in make_options(counted(**answers), {"draft": Timed(timed, costs, pace)}, here)}


def test_tokens_at_which_a_round_pays_by_hand():
    # Two steps and the check of three: 0.4 + 1.2, whatever is kept.
    assert break_even_tokens(STEPS, 2) == pytest.approx(1.6)
    # A pass grows by 0.1 with each kept token: 0.15 + 1.2 + 0.1 (t - 1) = t.
    tokens = break_even_tokens(PASSES, 2)
    assert tokens == pytest.approx(1.25 / 0.9)
    assert tokens is not None and PASSES.round_cost(2, tokens) == pytest.approx(tokens)
    slow = dataclasses.replace(STEPS, draft_step_seconds=0.1)
    assert break_even_tokens(slow, 2) is None, "two steps and a check cost 3.2, for 3 tokens at most"
    # A pass that costs a target step for each token that was kept can never pay.
    assert break_even_tokens(dataclasses.replace(STEPS, draft_passes={1: (0.1, 1.2)}), 1) is None


def test_what_a_shape_asks_for():
    kind = timed_kind("independent", 2, make_model(layers=1), STEPS, 3)
    assert kind.round_cost == pytest.approx({1: 1.3, 2: 1.6, 3: 1.9})
    # 1 + a = 1.3; 1 + a + a^2 = 1.6; 1 + a + a^2 + a^3 = 1.9.
    assert kind.break_even_alpha == pytest.approx({1: 0.3, 2: 0.4219, 3: 0.5089}, abs=1e-3)
    assert kind.easiest_num_draft_tokens == 1 and kind.perfect_draft_speedup == pytest.approx(4 / 1.9)
    hopeless = timed_kind("head", None, make_model(layers=1), dataclasses.replace(STEPS, draft_step_seconds=0.2), 3)
    assert hopeless.easiest_num_draft_tokens is None and hopeless.perfect_draft_speedup < 1


def test_time_of_training_by_hand():
    # 1000 new tokens: 10 s of training, 10 s of reading, 20 s of writing.
    assert PACE.seconds(1000) == pytest.approx(40) and PACE.tokens(40) == pytest.approx(1000)
    # Beyond 2000 text comes again, and was read already.
    assert PACE.seconds(5000) == pytest.approx(80 + 30) and PACE.tokens(110) == pytest.approx(5000)
    again = dataclasses.replace(PACE, read_once=False, writes=None)
    assert again.seconds(5000) == pytest.approx(100) and again.tokens(100) == pytest.approx(5000)


def test_what_a_similar_draft_would_bring():
    """4000 tokens take 80 + 20 s; at 2 draft tokens 2.4 per call over 0.4 + 1.2, as its bench predicted."""
    found = options()
    draft = found["draft"]
    (known,) = draft.elsewhere
    assert (known.unlike, known.in_budget, known.trained_tokens, known.source) == (None, True, 4000, "r.json, late")
    assert known.minutes == pytest.approx(100 / 60)
    assert (known.num_draft_tokens, known.tokens_per_call) == (2, 2.4) and known.predicted_speedup == pytest.approx(1.5)
    assert draft.ground == "measured for another target" and draft.predicted_speedup == known.predicted_speedup
    assert list(found) == ["draft", "ngram", "nothing"]
    assert found["ngram"].ground == "counted" and found["nothing"].predicted_speedup == 1
    assert draft.next == ["draft 2"] and found["ngram"].next == ["ngram 3"]
    assert (
        "in r.json such a draft reached alpha 0.50 on mails with 4,000 tokens of training, 2 minutes here" in draft.why
    )
    assert (known.study, draft.study) == ("r.json", "r.json") and found["ngram"].study is None
    assert (
        "it pays above 1.30 tokens per call with 1 draft token (alpha 0.30), a perfect one would give 2.11x"
        in draft.why
    )


def test_a_shorter_budget_takes_the_shorter_training():
    """In a minute the 4000 tokens are out of reach. The 1000 have alpha alone: 1.5 per call with one, 1.75 with two."""
    (known,) = options(minutes=1.0)["draft"].elsewhere
    assert known.trained_tokens == 1000 and known.minutes == pytest.approx(40 / 60)
    assert (known.num_draft_tokens, known.tokens_per_call) == (1, 1.5)
    assert known.predicted_speedup == pytest.approx(1.5 / 1.3)


def test_what_is_not_known_has_no_speed_up():
    late = options(minutes=0.1)["draft"]
    assert late.predicted_speedup is None and late.ground == "not known" and not late.elsewhere[0].in_budget
    assert "the shortest similar training that was measured takes 1 minutes here" in late.why
    untimed = options(pace=None)["draft"]
    assert untimed.predicted_speedup is None and untimed.elsewhere[0].minutes is None
    large = options(parameters=1000)["draft"]
    assert large.predicted_speedup is None and large.elsewhere[0].unlike == "your target is 10 times as large"
    assert options(parameters=10)["draft"].elsewhere[0].unlike == "your target is 10 times smaller"
    assert options(parameters=400)["draft"].elsewhere[0].unlike is None
    other = options(certainty=0.7)["draft"].elsewhere[0]
    assert other.unlike == "there the target was certain of a token by 0.90, here by 0.70"
    assert (
        options(suffix=1.2)["draft"].elsewhere[0].unlike == "there suffix decoding gave 2.00 tokens per call, here 1.20"
    )
    head = options(kind="head", layers=None, costs=PASSES)["draft"]
    assert head.elsewhere == [] and head.predicted_speedup is None
    assert head.why.startswith("acceptance is not known: none was measured for a similar target; it pays above")


def test_one_alpha_says_too_little_of_a_draft_whose_alpha_falls():
    """Only lengths that a bench predicted count: 2.4 tokens of at most 3 at two, none at three."""
    known = options(kind="parallel", costs=PASSES, known=table(kind="parallel"))["draft"].elsewhere[0]
    assert known.num_draft_tokens == 2 and known.predicted_speedup == pytest.approx(2.4 / PASSES.round_cost(2, 2.4))
    # The shorter training was never benched, and the longer one is out of reach.
    early = options(kind="parallel", costs=PASSES, known=table(kind="parallel"), minutes=1.0)["draft"]
    assert early.elsewhere[0].trained_tokens == 4000 and early.predicted_speedup is None


def two_studies(minutes: float, **changes: Any):
    """A cut and a parallel draft of one study, and the cut of another study where it was trained for longer."""
    long = {"study": "long.json", "points": [row("long.json, cut", 9000, 0.95, 1.95, 2.9, 3.6)]}
    ours = {"study": "kinds.json", "points": [row("kinds.json, cut", 4000, 0.6, 1.6, 2.1, 2.3)]}
    both = {"study": "kinds.json", "kind": "parallel"}
    both["points"] = [row("kinds.json, parallel", 5000, 0.62, 1.62, 2.2, 2.6, ordinary_tokens=2000)]
    known = table(ours, both, **long, **changes)
    here = Here(
        parameters=200, rule="greedy", max_draft_tokens=3, minutes=minutes, known=known, next_of=lambda *_: ["make it"]
    )
    cut, parallel = (timed_kind(kind, 2, make_model(layers=1), STEPS, 3) for kind in ("independent", "parallel"))
    timed = {
        "independent-2": Timed(cut, STEPS, PACE),
        "parallel-2": Timed(parallel, PASSES, ParallelPace(ordinary=PACE, parallel=PACE)),
    }
    return {one.name: one for one in make_options(counted(), timed, here)}


def test_drafts_are_ranked_within_one_study():
    """The longer trained cut of the other study would be 3.6 / 1.9 here, ahead of all; it says nothing beside them."""
    found = two_studies(minutes=60.0)
    assert list(found)[:2] == ["parallel-2", "independent-2"]
    cut, parallel = found["independent-2"], found["parallel-2"]
    assert (cut.study, parallel.study) == ("kinds.json", "kinds.json")
    assert cut.predicted_speedup == pytest.approx(2.1 / 1.6) and parallel.predicted_speedup == pytest.approx(
        2.6 / PASSES.round_cost(3, 2.6)
    )
    assert {one.study: one.predicted_speedup for one in cut.elsewhere} == pytest.approx(
        {"long.json": 3.6 / 1.9, "kinds.json": 2.1 / 1.6}
    )
    assert "in kinds.json such a draft reached alpha 0.60 on mails" in cut.why
    assert "in kinds.json such a draft reached alpha 0.62 of a round's first token on mails" in parallel.why


def test_a_draft_of_another_study_stands_apart():
    """No row of the compared study: its speed-up is told, and ranked with no other draft's."""
    deep = {"study": "long.json", "layers": 8, "points": [row("long.json, deep", 500, 0.95, 1.95, 2.9, 3.6)]}
    known = table(
        {"study": "kinds.json", "layers": 4, "points": [row("kinds.json, 4", 500, 0.6, 1.6)]},
        deep,
        study="kinds.json",
    )
    timed = {
        f"independent-{layers}": Timed(timed_kind("independent", layers, make_model(layers=1), STEPS, 3), STEPS, PACE)
        for layers in (2, 4, 8)
    }
    here = Here(parameters=200, rule="greedy", max_draft_tokens=3, minutes=9, known=known, next_of=lambda *_: ["x"])
    options = make_options(counted(), timed, here)
    assert [one.name for one in options][-1] == "independent-8" and options[-1].predicted_speedup == pytest.approx(
        3.6 / 1.9
    )
    assert options[-1].ground == "measured for another target, in another study"
    assert "which does not compare with kinds.json: prompts and training differ" in options[-1].why
    assert all(one.ground != options[-1].ground for one in options[:-1])


def test_the_time_of_a_parallel_draft_holds_the_ordinary_training_before_it():
    """2000 tokens: 20 s of training, 20 of reading, 40 of writing. 3000 more on the same text: 30 + 20."""
    both = ParallelPace(ordinary=PACE, parallel=PACE)
    assert both.seconds(2000, 3000) == pytest.approx(80 + 50)
    # Text that only the second run gets to is written then.
    assert both.seconds(1000, 2000) == pytest.approx(40 + 20 + 20 + 20)
    # A thousand tokens in each run.
    assert both.seconds(1000, 1000) == pytest.approx(40 + 20) and both.tokens(60) == pytest.approx(1000)
    (known,) = two_studies(minutes=60.0)["parallel-2"].elsewhere
    assert known.minutes == pytest.approx(130 / 60) and (known.trained_tokens, known.ordinary_tokens) == (5000, 2000)
    assert "2 minutes here with the ordinary training before it" in two_studies(minutes=60.0)["parallel-2"].why
    late = two_studies(minutes=2.0)["parallel-2"]
    assert late.predicted_speedup is None and "takes 2 minutes here with the ordinary training before it" in late.why


def test_the_order_ends_with_what_is_not_known():
    """An n-gram slower than nothing comes behind it; a draft of unknown acceptance last, and one that can't pay too."""
    assert list(options(ngram=0.9, parameters=1000)) == ["nothing", "ngram", "draft"]
    assert list(options(ngram=0.0, parameters=1000)) == ["nothing", "draft", "ngram"]


def test_cuts_and_parallel_drafts_for_mails_are_compared_by_the_study_that_trained_both():
    """By the committed table: the longest trained cut is of another study, and would be ahead by its numbers alone."""
    known = known_results()
    job = known.jobs["mails"]
    fast = dataclasses.replace(PACE, trains=1e4, reads=1e4, writes=1e4)
    timed = {}
    for layers in (2, 4):
        cut, parallel = (
            timed_kind(kind, layers, make_model(layers=1), STEPS, 3) for kind in ("independent", "parallel")
        )
        timed[f"independent-{layers}"] = Timed(cut, STEPS, fast)
        timed[f"parallel-{layers}"] = Timed(parallel, STEPS, ParallelPace(ordinary=fast, parallel=fast))
    here = Here(135_000_000, "greedy", 3, minutes=60.0, known=known, next_of=lambda *_: ["make it"])
    found = make_options(counted(certainty=job.certainty, suffix=job.suffix_tokens_per_call), timed, here)
    drafts = {one.name: one for one in found if one.name in timed}
    assert {one.study for one in drafts.values()} == {"kinds_mails.json"}
    assert {one.ground for one in drafts.values()} == {"measured for another target"}
    assert "drifted.json" in {one.study for one in drafts["independent-4"].elsewhere}
    single = json.loads((RESULTS / "kinds_mails.json").read_text())["rows"]["single-4"]["tokens_per_call"]
    assert drafts["independent-4"].predicted_speedup == pytest.approx(
        max(single[str(length)]["mean"] / STEPS.round_cost(length, 1.0) for length in (1, 2, 3))
    )
    # Where tokens are sampled that study says nothing, and cuts are compared by the other one.
    sampled = make_options(
        counted(certainty=job.certainty, suffix=job.suffix_tokens_per_call),
        timed,
        dataclasses.replace(here, rule="sampled"),
    )
    assert {one.name: one.study for one in sampled if one.name in timed} == {
        **{"independent-2": "drifted.json", "independent-4": "drifted.json"},
        **{"parallel-2": None, "parallel-4": None},
    }


def test_the_kind_of_answers_by_hand():
    """Certainty by plain passes; the first 12 answers count, and 96 tokens of each."""
    target = make_model(layers=2)
    texts = [Example(f"p{row}", (3, 7, 8 + row), (9, 10, 11 + row, 9, 10), (2,) * 5) for row in range(12)]
    kind = answer_kind(target, texts, Quiet())
    with torch.no_grad():
        probabilities = []
        for text in texts:
            ids = torch.tensor([[*text.prompt_ids, *text.answer_ids]])
            probabilities.append(target.logits(target.hidden_states(ids))[0, 2:-1].softmax(-1).amax(-1))
    assert kind.certainty.mean == pytest.approx(float(torch.cat(probabilities).mean()), rel=1e-4)
    assert kind.answers == 12 and kind.copied_4grams.mean == 0
    assert answer_kind(target, [*texts, texts[0]], Quiet()) == kind
    long = [
        Example(f"p{row}", (3, 7), tuple(5 + (row + place) % 50 for place in range(120)), (2,) * 120) for row in (0, 1)
    ]
    cut = [dataclasses.replace(one, answer_ids=one.answer_ids[:96], provenance=one.provenance[:96]) for one in long]
    assert str(answer_kind(target, long, Quiet())) == str(answer_kind(target, cut, Quiet()))


def test_the_committed_table_holds_the_results_numbers():
    known = known_results()
    drifted = json.loads((RESULTS / "drifted.json").read_text())
    (draft,) = [draft for draft in known.of("independent", 2) if draft.study == "drifted.json"]
    (one,) = draft.points
    assert one.source == "drifted.json, fkl-2"
    assert one.alpha["greedy"].mean == drifted["rows"]["fkl-2"]["alpha"]["greedy"]["mean"]
    assert one.calls("greedy", 7, False) == drifted["bench"]["fkl-2-float32-0"]["predicted_mean_acceptance_length"]["7"]
    # 120 steps of 8 answers, of 84.4 tokens on average.
    assert one.tokens == round(120 * 8 * 5402 / 64)
    kinds = json.loads((RESULTS / "kinds_mails.json").read_text())["rows"]
    beside = {
        draft.kind: draft.points
        for layers in (4,)
        for draft in known.drafts
        if draft.study == "kinds_mails.json" and draft.layers == layers
    }
    trained = {
        name: sum(seed["tokens_trained"] for seed in kinds[name]["seeds"]) / 3
        for name in ("start-4", "single-4", "parallel-4")
    }
    assert [point.tokens for point in beside["independent"]] == [
        round(trained["start-4"]),
        round(trained["start-4"] + trained["single-4"]),
    ]
    (parallel,) = beside["parallel"]
    assert parallel.ordinary_tokens == round(trained["start-4"])
    assert parallel.tokens == round(trained["start-4"] + trained["parallel-4"])
    for draft in known.drafts:
        assert all(point.source.startswith(draft.study) for point in draft.points)
        assert [point.tokens for point in draft.points] == sorted(point.tokens for point in draft.points)
        for each in (*draft.points, known.jobs[draft.job]):
            assert (RESULTS / each.source.partition(",")[0]).is_file(), each.source
