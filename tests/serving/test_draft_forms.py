"""`bench --engine llama-cpp --compare`: every form of a draft has servers of its own, and a row beside --draft."""

from __future__ import annotations

import numpy as np
import pytest
from bench_report import example_report
from tiny_models import make_model, perturbed, save

from specdistill import BenchConfig
from specdistill.data.batch import Example
from specdistill.decoding import Generation, Sampling
from specdistill.errors import ConfigError, ServerError
from specdistill.evaluation import acceptance
from specdistill.evaluation.interruption import Interruption
from specdistill.models import load
from specdistill.models.pair import load_pair
from specdistill.progress import Quiet
from specdistill.serving.draft_forms import speedup_difference, time_forms, with_forms
from specdistill.serving.engine_report import EngineRun
from specdistill.serving.speculation import Speculation

FORMS = ("d-q8_0.gguf", "d-q4_k.gguf")


def config(**settings):
    given = {"target": "t.gguf", "draft": "d.gguf", "engine": "llama-cpp", "compare": FORMS, "num_draft_tokens": 2}
    return BenchConfig.flat(**(given | settings))


def batches(plain_seconds, seconds, rounds, count=8):
    """One answer of 13 tokens each."""

    def answer(taken):
        return [Generation(list(range(13)), finish_reason="length", seconds=taken, first_token_seconds=0.0)]

    return [EngineRun(answer(plain_seconds), answer(seconds), Speculation(rounds, 2 * rounds, 12 - rounds))] * count


def test_each_form_is_served_in_turn_and_one_that_fails_is_left_out():
    said, asked = [], []

    class Says(Quiet):
        def say(self, text):
            said.append(text)

    def timed(other):
        asked.append((other.draft, other.compare, other.load.concurrency, other.target))
        if "q4_k" in other.draft:
            raise ServerError("it does not start")
        return batches(13.0, 8.0, 6)

    runs = time_forms(config(concurrency=(1, 2)), timed, Says(), Interruption(said.append))
    assert list(runs) == ["d-q8_0.gguf"]
    assert asked == [("d-q8_0.gguf", (), (), "t.gguf"), ("d-q4_k.gguf", (), (), "t.gguf")]
    assert "d-q4_k.gguf was not compared: it does not start" in said[0]


def test_caches_of_one_draft_are_rows_too():
    """The draft's own weights with a q4_0 cache: 7 calls in place of 6, counted by its server."""
    asked = []

    def timed(other):
        asked.append((other.draft, other.drafting.draft_kv, other.drafting.compare_kv))
        return batches(13.0, 8.0, 7)

    settings = config(compare=(), compare_kv=("q8_0", "q4_0"), draft_kv="bf16")
    runs = time_forms(settings, timed, Quiet(), Interruption(print))
    assert asked == [("d.gguf", "q8_0", ()), ("d.gguf", "q4_0", ())]
    assert list(runs) == ["d.gguf, KV q8_0", "d.gguf, KV q4_0"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "vllm", "draft": "d", "compare": (), "draft_kv": "q8_0"}, "are for --engine llama-cpp"),
        ({"compare_kv": ("q8_0", "q8_0")}, "--compare-kv names a format twice"),
        ({"draft_kv": "q8_0", "compare_kv": ("q8_0",)}, "or that of --draft itself"),
        ({"compare_kv": ("f16",)}, "or that of --draft itself"),
    ],
)
def test_cache_formats_are_checked(settings, said):
    with pytest.raises(ConfigError, match=said):
        config(**settings)


def test_the_difference_is_of_speed_ups_each_over_its_own_plain_target():
    """13 tokens in 13 and 8 seconds, and in 26 and 13: the machine was half as fast, but 2.0 is 0.375 above 1.625."""
    found = speedup_difference(batches(26.0, 13.0, 4), batches(13.0, 8.0, 6))
    assert found.mean == pytest.approx(2 - 13 / 8) and found.low == pytest.approx(found.high)


def test_rows_hold_the_engines_speed_and_our_alpha(tmp_path):
    target = make_model(layers=2)
    for name, model in (("target", target), ("draft", make_model(layers=1, seed=9)), ("good", perturbed(target, 0.02))):
        save(model, tmp_path / name)
    pair = load_pair(str(tmp_path / "target"), str(tmp_path / "draft"))
    answers = [Example(f"p{i}", (5 + i, 7), tuple(range(8, 21)), (3,) * 13) for i in range(8)]
    records = acceptance.score(pair.target, pair.draft, answers, Sampling(temperature=0.0))
    good = str(tmp_path / "good")
    sources, runs, forms = [load.find(good, "compare")], batches(13.0, 8.0, 6), {good: batches(13.0, 6.5, 4)}
    stop = Interruption(lambda text: None)
    report = with_forms(example_report(), config(), sources, pair, answers, records, runs, forms, Quiet(), stop)
    first, second = report.leaderboard
    assert (first.draft, second.draft) == (good, pair.draft.name)
    assert first.speedup.mean == pytest.approx(2) and second.speedup.mean == pytest.approx(13 / 8)
    assert first.speedup_minus_draft.mean == pytest.approx(2 - 13 / 8) and second.speedup_minus_draft is None
    # Twelve tokens after the first, in 4 and 6 rounds.
    assert first.mean_acceptance_length.mean == 3 and second.mean_acceptance_length.mean == 2
    scored = acceptance.score(pair.target, load.load_model(sources[0], "draft"), answers, Sampling(temperature=0.0))
    means = [np.mean([record.alpha["greedy"].mean() for record in each]) for each in (scored, records)]
    assert first.alpha.mean == pytest.approx(means[0]) and first.alpha_minus_draft.mean == pytest.approx(
        means[0] - means[1]
    )
    # Steps in our decoder say nothing about the engine's.
    assert first.cost_ratio is None and first.predicted_speedup is None
    assert (
        with_forms(example_report(), config(), sources, pair, answers, records, runs, {}, Quiet(), stop).leaderboard
        is None
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"compare": ["d-q8_0.gguf", "folder"]},
        {"engine": "vllm", "target": "t", "draft": "d", "compare": ["c.gguf"]},
        {"engine": "transformers", "target": "t", "draft": "d", "compare": ["c"]},
    ],
)
def test_other_engines_and_files_are_refused(settings):
    with pytest.raises(ConfigError, match=r"takes the .gguf files of --engine llama-cpp only"):
        config(**settings)
