"""Drafting without a model: walks worked out by hand, the decoder's own counts, and what is recommended."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from tiny_models import make_model, perturbed, save

from specdistill import BenchConfig
from specdistill.data.batch import Example, Provenance
from specdistill.decoding import Generation, SpeculativeDecoder
from specdistill.decoding.costs import Costs
from specdistill.decoding.draft_kinds import ModelDraft
from specdistill.decoding.free_drafts import FreeThenModel
from specdistill.decoding.lookup import VllmNgram
from specdistill.errors import ConfigError
from specdistill.evaluation.acceptance import expected_rounds
from specdistill.evaluation.baseline_settings import BaselineSettings
from specdistill.evaluation.baselines import Beside, ways_of
from specdistill.evaluation.copying_walk import walk
from specdistill.evaluation.interruption import BenchFailedError
from specdistill.evaluation.latency import TimedRun
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.overlap import bleu4, overlap
from specdistill.evaluation.recommend import TimedWay, recommend, same_answers, training_flags
from specdistill.evaluation.recommendation import AGAIN
from specdistill.evaluation.report_baselines import Baseline
from specdistill.evaluation.statistics import Estimate
from specdistill.files.parallel_drafting import ParallelDrafting

NGRAM = partial(VllmNgram, 2, 3)
COSTS = Costs(1.0, 0.25, {1: 1.0, 2: 1.1, 3: 1.3, 4: 1.6})


def answer(prompt, ids):
    return Example("p", tuple(prompt), tuple(ids), (int(Provenance.TARGET),) * len(ids))


def test_a_walk_by_hand():
    # The first token 1 comes with the prompt. After 8 1 nothing is known: a plain step gives 2. After 1 2 the prompt
    # went on with 3 4 5, of which the answer has 3 4: three tokens. After 3 4 6 nothing is known: 7, the last.
    example = answer([1, 2, 3, 4, 5, 9, 8], [1, 2, 3, 4, 6, 7])
    found = walk(example, NGRAM, 3, 50, COSTS)
    assert (found.tokens, found.rounds, found.proposing) == (5, 3, 1)
    assert found.cost == pytest.approx(1.0 + 1.6 + 1.0)
    # With two tokens at a time both are kept, and the correction follows: as many rounds, at a smaller cost.
    assert walk(example, NGRAM, 2, 50, COSTS).cost == pytest.approx(1.0 + 1.3 + 1.0)
    # At the limit of the answer no more is proposed than what is left minus one: 3 here, and 4 follows from the target.
    short = walk(answer(example.prompt_ids, [1, 2, 3, 4]), NGRAM, 3, 4, COSTS)
    assert (short.tokens, short.rounds, short.cost) == (3, 2, pytest.approx(1.0 + 1.1))


def test_the_draft_is_asked_only_where_nothing_is_copied():
    example = answer([1, 2, 3, 4, 5, 9, 8], [1, 2, 3, 4, 6, 7])
    chances = np.array([0.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    found = walk(example, NGRAM, 1, 50, COSTS, chances)
    # Round 1 asks the draft for the 2, which is kept with 1/2. Then 3 follows from the target, 4 is copied, and 6
    # follows. Else 2 comes alone, 3 is copied, 4 follows; 5 is copied, and 6 comes in its place. 7 is the last token,
    # and not drafted.
    assert found.rounds == pytest.approx(1 + 0.5 * (1 + 1) + 0.5 * (1 + 1 + 1))
    draft_round, copy_round, plain = 0.25 + 1.1, 1.1, 1.0
    assert found.cost == pytest.approx(draft_round + 0.5 * (copy_round + plain) + 0.5 * (2 * copy_round + plain))
    assert found.proposing == pytest.approx(1 + 0.5 + 0.5 * 2)
    # A draft whose pass costs more the more it reads: asked once in five tokens, it reads five, 0.2 + 4 * 0.1.
    by_pass = Costs(1.0, 0.25, COSTS.verify_cost, {1: (0.2, 0.3)})
    dearer = walk(example, NGRAM, 1, 50, by_pass, chances)
    assert dearer.cost == pytest.approx(found.cost - 0.25 + 0.6)


def test_a_walk_that_copies_nothing_is_the_drafts_own_prediction():
    chances = np.random.default_rng(0).random(30)
    example = answer(range(100, 110), range(30))
    for length in (1, 3):
        found = walk(example, NGRAM, length, 99, None, chances)
        assert found.rounds == pytest.approx(expected_rounds(chances, length))
        drafted = walk(example, NGRAM, length, 99, None, chances, first_drafted=True)
        assert drafted.rounds == pytest.approx(expected_rounds(chances, length, first_drafted=True))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(perturbed(target, 0.02), folder / "draft")
    rows = [{"prompt": f"w{i} w{i + 1} w{2 * i} w{i} w{i + 1}", "category": "all"} for i in range(7)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def bench(folder, **settings):
    given = {"prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 30, "max_draft_tokens": 3, "baselines": "all"}
    names = {"target": str(folder / "target"), "draft": str(folder / "draft")}
    return measure_draft(BenchConfig.flat(**(names | given | settings)))


@pytest.mark.parametrize("temperature", [0.0, 0.2])
def test_what_is_predicted_is_what_the_decoder_counts(pair, temperature, monkeypatch):
    timed = {}
    real = __import__("specdistill.evaluation.latency", fromlist=["time_ways"]).time_ways

    def recorded(target, decoders, *arguments, **settings):
        timed.update(real(target, decoders, *arguments, **settings))
        return {name: list(runs) for name, runs in timed.items()}

    monkeypatch.setattr("specdistill.evaluation.timed_run.latency.time_ways", recorded)
    report = bench(pair, temperature=temperature)
    assert report.baselines is not None
    for name in ("ngram", "ngram_transformers", "ngram_llama_cpp", "suffix"):
        generations = [answer for run in timed[name] for answer in run.speculative]
        rounds = sum(len(answer.rounds) for answer in generations)
        emitted = sum(entry.emitted for answer in generations for entry in answer.rounds)
        # A copy is certain, so the prediction is no expectation but the very count.
        assert report.baselines[name].mean_acceptance_length.mean == pytest.approx(emitted / rounds)
        proposing = sum(entry.proposed > 0 for answer in generations for entry in answer.rounds)
        assert report.baselines[name].proposed_share == pytest.approx(proposing / rounds)
        speedup = report.baselines[name].speedup
        assert speedup is not None and speedup.has_interval
    copied = max(baseline.mean_acceptance_length.mean for baseline in report.baselines.values())
    assert copied > 1.05, "something must be copied"


def test_best_times_one_that_needs_no_draft_and_one_that_does(pair):
    report = bench(pair, baselines="best")
    assert report.baselines is not None and report.recommendation is not None
    timed = [name for name, baseline in report.baselines.items() if baseline.speedup is not None]
    assert len(timed) == 2 and sum(name.endswith("+draft") for name in timed) == 1
    alone = ("ngram", "ngram_transformers", "ngram_llama_cpp", "suffix")
    fastest = max(alone, key=lambda name: report.baselines[name].predicted_speedup or 0)
    assert set(timed) == {fastest, "ngram+draft"}
    assert bench(pair, baselines="none").baselines is None
    predicted = bench(pair, baselines="predict").baselines
    assert predicted and all(baseline.speedup is None for baseline in predicted.values())


@pytest.mark.parametrize("failing", ["ngram", "draft"])
def test_a_free_way_that_fails_is_left_out_and_the_draft_goes_on(pair, failing, monkeypatch):
    """In its third batch of seven: its own timing is gone, the other ways' is whole. A draft that fails ends it."""
    real, calls = SpeculativeDecoder.generate, []

    def generate(self, prompts, **settings):
        is_failing = failing == ("draft" if isinstance(self.draft, ModelDraft) else "ngram")
        if is_failing and not isinstance(self.draft, FreeThenModel) and settings["max_new_tokens"] == 30:
            calls.append(self)
            if len(calls) == 3:
                raise RuntimeError("planted")
        return real(self, prompts, **settings)

    monkeypatch.setattr(SpeculativeDecoder, "generate", generate)
    others = {"suffix", "suffix+draft", "ngram_transformers", "ngram_llama_cpp"}
    monkeypatch.setattr("specdistill.evaluation.baselines.UNSERVED", others)
    with pytest.raises(BenchFailedError) as failed:
        bench(pair, baselines="best")
    report = failed.value.report
    assert report.partial is not None and report.latency is not None and report.baselines is not None
    timed = [name for name, each in report.baselines.items() if each.speedup is not None]
    if failing == "draft":
        assert report.partial.where != "the timing of ngram" and len(calls) == 3
        return
    assert len(calls) == 3, "it is not tried again"
    assert report.partial.prompts_done == 7 and report.latency.speedup.has_interval and timed == ["ngram+draft"]
    assert report.baselines["ngram"].predicted_speedup is not None
    why = "the timing of ngram failed: RuntimeError: planted"
    assert report.partial.left_out == {"the timing of ngram": why}


@pytest.mark.parametrize("fastest", ["ngram", "ngram_transformers", "ngram_llama_cpp", "suffix"])
def test_best_is_the_fastest_that_an_engine_has(fastest):
    """It looked at three names only; nobody serves suffix decoding with a draft, however fast."""
    ways = ways_of(BaselineSettings(), frozenset())
    speeds = dict.fromkeys(ways, 1.1) | {fastest: 1.57, "suffix+draft": 1.9}
    predicted = {
        name: Baseline(
            settings={"num_draft_tokens": 3},
            mean_acceptance_length=Estimate(2.0, 1.9, 2.1),
            proposed_share=0.5,
            predicted_speedup=speed,
        )
        for name, speed in speeds.items()
    }
    beside = Beside(ways, predicted)
    assert set(beside.to_time(BaselineSettings())) == {fastest, "ngram+draft"}
    assert set(beside.to_time(BaselineSettings(baselines="all"))) == set(ways)


def test_sizes_of_ngrams_are_checked():
    with pytest.raises(ConfigError, match="--lookup-min 2 exceeds --lookup-max 1"):
        BaselineSettings(lookup_max=1)
    lookup = ways_of(BaselineSettings(lookup_min=1, lookup_max=1), frozenset())["ngram"].begin()()
    lookup.read([7, 3, 7])
    assert lookup.copy(2) == [3, 7]


def timed_way(name, seconds, plain=1.0):
    """Eight batches of 10 tokens that take these seconds, give or take a little."""

    def batch(time):
        return [Generation(token_ids=[1] * 10, seconds=time)]

    wobble = [1 + 0.01 * (number % 3) for number in range(8)]
    runs = [TimedRun(batch(plain * w), batch(seconds * w * (1 + 0.002 * i))) for i, w in enumerate(wobble)]
    return TimedWay(name, 3, runs)


@pytest.mark.parametrize(
    ("ways", "serve"),
    [
        ({"draft": 0.5, "ngram": 0.8}, "draft"),
        ({"draft": 0.8, "ngram": 0.5}, "ngram"),
        # The same speed: what takes nothing is served.
        ({"draft": 0.6, "ngram": 0.6}, "ngram"),
        ({"draft": 0.6, "ngram": 0.7, "ngram+draft": 0.4}, "ngram+draft"),
        ({"draft": 0.6, "ngram": 0.7, "ngram+draft": 0.6}, "draft"),
        ({"draft": 1.2, "ngram": 1.1, "ngram+draft": 1.3}, "nothing"),
        ({"draft": 0.7, "ngram": 1.1}, "draft"),
        ({"draft": 1.1, "suffix": 0.7}, "suffix"),
    ],
)
def test_what_is_recommended(ways, serve):
    found = recommend([timed_way(name, seconds) for name, seconds in ways.items()], "T", "a draft")
    assert found is not None and found.serve == serve
    assert found.num_draft_tokens == (None if serve == "nothing" else 3)
    if serve in ("ngram", "suffix"):
        assert "The draft adds nothing" in found.why
        assert f"--method {serve} --num-draft-tokens 3" in found.next and "--draft" not in found.next.split()
    elif serve == "nothing":
        assert found.next == "specdistill train-draft --target T --draft 'a draft' --output trained-draft"
        timed = [timed_way(name, seconds) for name, seconds in ways.items()]
        hopeless = recommend(timed, "T", "a draft", verdict="cannot pay")
        assert hopeless is not None and hopeless.next.startswith("Do not train this draft")
    else:
        assert found.next == "specdistill check --target T --draft 'a draft'"


def test_the_next_bench_asks_the_same():
    config = BenchConfig.flat(target="T", draft="D", prompts="mails.jsonl", temperature=0.7, num_prompts=32)
    same = same_answers(config)
    assert same == ["--prompts", "mails.jsonl", "--temperature", "0.7"]
    assert same_answers(config.replace(top_p=0.9)) == [*same, "--top-p", "0.9"]
    found = recommend([timed_way("draft", 0.8), timed_way("suffix", 0.5)], "T", "D", same)
    assert found is not None and found.next.endswith(
        "bench --target T --engine vllm --method suffix --num-draft-tokens 3 --prompts mails.jsonl --temperature 0.7"
    )


def test_a_gguf_target_is_served_by_llama_cpps_own_lookup():
    ways = [replace(timed_way("ngram_llama_cpp", 0.5), num_draft_tokens=48)]
    found = recommend(ways, "t.gguf", None, ["--prompts", "mails.jsonl"])
    assert found is not None and found.next == (
        "specdistill bench --target t.gguf --engine llama-cpp --method ngram --num-draft-tokens 48"
        " --max-draft-tokens 48 --lookup-max 12 --prompts mails.jsonl"
    )
    elsewhere = recommend(ways, "T", None)
    assert elsewhere is not None and elsewhere.next == "specdistill check --target T"


def noisy_way(name, seconds):
    """Eight batches, every second of which takes a third longer and the others a third less."""
    runs = timed_way(name, seconds).runs
    shaken = [
        [Generation([1] * 10, seconds=run.speculative[0].seconds * factor)]
        for run, factor in zip(runs, (1.33, 0.66) * 4, strict=True)
    ]
    return TimedWay(name, 3, [TimedRun(run.plain, batch) for run, batch in zip(runs, shaken, strict=True)])


def test_what_takes_more_must_be_faster_beyond_chance():
    draft, both = timed_way("draft", 0.6), noisy_way("ngram+draft", 0.59)
    assert both.over(draft).mean > 1 > both.over(draft).low
    found = recommend([draft, both], "T", "D")
    assert found is not None and found.serve == "draft"


def test_what_was_not_timed_and_might_pay_is_named():
    ways = [timed_way("draft", 1.2), timed_way("ngram", 1.1)]
    found = recommend(ways, "T", "D", untimed={"suffix": 1.15, "suffix+draft": 0.9})
    assert found is not None and found.serve == "nothing"
    assert found.why.endswith("Predicted, and not timed: suffix decoding 1.15x; --baselines all times them.")


def test_more_than_a_perfect_draft_would_give_decides_nothing():
    found = recommend([timed_way("draft", 0.5)], "T", "D", verdict="undecided")
    assert found is not None and (found.serve, found.next) == ("undecided", AGAIN)


def test_the_next_training_reads_prompts_of_ones_own_and_keeps_a_parallel_draft():
    own = BenchConfig.flat(target="T", draft="D", prompts="mails.jsonl")
    assert training_flags(own, ParallelDrafting(7, 4)) == ["--prompts", "NEW_PROMPTS", "--parallel", "4"]
    assert training_flags(BenchConfig.flat(target="T", draft="D")) == []
    found = recommend([timed_way("draft", 1.2)], "T", "D", training=training_flags(own))
    assert found is not None
    assert found.next == "specdistill train-draft --target T --draft D --prompts NEW_PROMPTS --output trained-draft"


def test_too_few_batches_decide_nothing():
    few = [TimedWay("draft", 2, timed_way("draft", 0.5).runs[:3])]
    found = recommend(few, "T", "D")
    assert found is not None and (found.serve, found.num_draft_tokens) == ("undecided", None)


def test_overlap_by_hand():
    # Runs of 4 in the answer: 1234, 2345, 3459; two stand in the prompt.
    example = answer([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 9])
    found = overlap([example])
    assert found.copied_4grams.mean == pytest.approx(2 / 3)
    precisions = 5 / 6 * 4 / 5 * 3 / 4 * 2 / 3
    assert found.prompt_answer_bleu4.mean == pytest.approx(precisions**0.25)
    # A text that is shorter than its reference pays for it; one without a common run has nothing.
    assert bleu4([1, 2, 3, 4], [1, 2, 3, 4, 5, 6]) == pytest.approx(np.exp(1 - 6 / 4))
    assert bleu4([1, 2, 3], [1, 2, 3]) == 0.0


@pytest.mark.parametrize("seconds", [{"draft": 0.5}, {"ngram": 0.5}, {"draft": 1.2}])
def test_what_is_advised_for_an_adapter_names_its_base(seconds):
    """Without it the command would look for the base that the adapter itself names."""
    found = recommend([timed_way(name, value) for name, value in seconds.items()], "T", "D", base="the base")
    assert found is not None and "--target T --target-base 'the base' " in found.next
