"""A head in the bench: what one pass over the target's answers predicts is what decoding counts."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
from head_drafts import GREEDY, IDS, PROMPTS, decode, guesses, make_head, taught_pair
from tiny_models import make_model, save

from specdistill import BenchConfig
from specdistill.data.batch import Provenance
from specdistill.data.prompt import Prompt
from specdistill.decoding import Sampling, generate_plain
from specdistill.decoding.costs import measure_costs, passes_timed
from specdistill.decoding.generation import as_example
from specdistill.errors import ConfigError, IncompatibleModelsError
from specdistill.evaluation import guessed_states as module
from specdistill.evaluation.acceptance import predicted_tau, score, score_draft
from specdistill.evaluation.guessed_states import guessed_states
from specdistill.evaluation.measure import measure_draft
from specdistill.evaluation.samples import make_sample
from specdistill.models.eagle3 import save_head
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables

taught = functools.cache(taught_pair)


def answered(target, prompts=PROMPTS, sampling=GREEDY, new=24, seeds=None):
    seeds = seeds or list(range(len(prompts)))
    written = generate_plain(target, prompts, sampling=sampling, max_new_tokens=new, seeds=seeds)
    return [
        as_example(str(row), prompt, answer, Provenance.TARGET)
        for row, (prompt, answer) in enumerate(zip(prompts, written, strict=True))
    ]


@pytest.mark.parametrize("rounds", [256, 5])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_guesses_behind_every_token_are_those_of_plain_passes(family, rounds, monkeypatch):
    monkeypatch.setattr(module, "_ROUNDS", rounds)
    target = make_model(family, layers=7)
    draft, known = make_head(target), {}
    example = answered(target, PROMPTS[2:3], new=14)[0]
    states = guessed_states(draft, [example], 4, target, known)[0]
    assert states.shape[:2] == (len(example.answer_ids), 4)
    for start in range(14):
        text, rest = [*example.prompt_ids, *example.answer_ids[:start]], list(example.answer_ids[start : start + 4])
        wanted = guesses(target, draft, text, rest)
        torch.testing.assert_close(draft.own_logits(states[start])[: len(rest)], wanted, atol=1e-3, rtol=1e-3)
    hidden = target.hidden_states(torch.tensor([[*example.prompt_ids, *example.answer_ids]]))[0]
    torch.testing.assert_close(known[example], hidden[len(example.prompt_ids) - 1 : -1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, len(PROMPTS)])
def test_greedy_prediction_is_what_the_decoder_counts(batch):
    target, draft = taught()
    records = score(target, draft, answered(target), GREEDY, depths=8)
    for length in range(1, 9):
        written = []
        for start in range(0, len(PROMPTS), batch):
            written += decode(target, draft, length, prompts=PROMPTS[start : start + batch])
        tokens, rounds = predicted_tau(records, "greedy", length)
        for row, answer in enumerate(written):
            assert (rounds[row], tokens[row]) == (len(answer.rounds), sum(entry.emitted for entry in answer.rounds))
    assert max(predicted_tau(records, "greedy", 8)[0] / rounds) > 3


@pytest.mark.parametrize("rule", ["sampled", "argmax_draft"])
def test_the_expected_rounds_are_those_of_sampled_decoding(rule):
    target, draft = taught()
    sampling, prompts = Sampling(temperature=0.1), [PROMPTS[row % 4] for row in range(300)]
    records = score(target, draft, answered(target, prompts, sampling, 10), sampling, depths=3)
    seeds = list(range(1000, 1300))
    written = decode(target, draft, 3, sampling, prompts, 10, seeds, rule=rule)
    predicted = predicted_tau(records, rule, 3)
    counted = [len(answer.rounds) for answer in written]
    error = np.hypot(np.std(counted), np.std(predicted[1])) / np.sqrt(300)
    assert abs(np.mean(counted) - predicted[1].mean()) < 4 * error
    assert 1.2 < sum(predicted[0]) / sum(predicted[1]) < 3.9


def test_features_of_the_target_at_later_steps_are_caught(monkeypatch):
    """Planted: every step of a round reads the target's feature, as if it had been there."""
    target, draft = taught()
    example = answered(target, PROMPTS[2:3])[0]
    right = guessed_states(draft, [example], 4, target)[0]
    real = module.unrolled_states

    def cheating(head, ids, aux, anchors, steps):
        return [real(head, ids, aux, anchors._replace(first=anchors.first + step), 1)[0] for step in range(steps)]

    monkeypatch.setattr(module, "unrolled_states", cheating)
    monkeypatch.setattr(module, "_ROUNDS", 20)
    wrong = guessed_states(draft, [example], 4, target)[0]
    assert torch.allclose(right[:, 0], wrong[:, 0]) and not torch.allclose(right[:5, 1], wrong[:5, 1], atol=1e-2)


def test_without_its_target_it_is_refused():
    target, draft = taught()
    with pytest.raises(ConfigError, match="is a head, which is scored with its target's hidden states only"):
        score_draft(draft, answered(target, PROMPTS[:1]), greedy=True)


def test_every_pass_of_a_round_is_timed():
    target, draft = taught()
    passes = []
    settings = {"batch_size": 2, "max_draft_tokens": 3, "context": 4, "repeats": 1}
    costs = measure_costs(target, draft, **settings, on_pass=lambda: passes.append(1))
    # One step, beginnings of 1 to 4 tokens, checks of 1 to 4.
    assert len(passes) == passes_timed(draft, 3, repeats=1) == 2 * 9
    assert costs.by_steps and set(costs.draft_passes) == {1, 2, 3}
    shortest = [costs.draft_passes[count][0] for count in (1, 2, 3)]
    assert np.diff(shortest) == pytest.approx([costs.cost_ratio] * 2)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    target, draft = taught()
    save(target, folder / "target")
    for name, head in (("head", draft), ("bad", make_head(target, seed=9))):
        (folder / name).mkdir()
        save_head(head.head, folder / name, 7)
    save(make_model(layers=7, hidden=48), folder / "wider")
    words = [" ".join(f"w{token - 5}" for token in prompt if token > 4) for prompt in PROMPTS]
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": text, "answer": "w1"}) + "\n" for text in words)
    )
    return folder


def bench(files, draft="head", **settings):
    defaults = {
        "target": str(files / "target"),
        "prompts": str(files / "prompts.jsonl"),
        "raw_prompts": True,
        "max_new_tokens": 24,
        "max_draft_tokens": 4,
        "num_draft_tokens": 3,
        "baselines": "none",
    }
    return measure_draft(BenchConfig.flat(draft=str(files / draft), **(defaults | settings)))


@pytest.fixture(scope="module")
def report(files):
    return bench(files, compare=(str(files / "bad"),), batch_sizes=(1, 2), baselines="all")


def test_the_report_predicts_what_it_counts(report):
    found = report.acceptance
    assert report.lossless.greedy_identical and report.draft.kind == "eagle3" and report.draft.head_size == len(IDS)
    assert found.predicted_mean_acceptance_length[3] == pytest.approx(found.mean_acceptance_length.mean)
    assert found.mean_acceptance_length.mean > 1.1
    assert len(found.alpha_by_depth["greedy"]) == 4
    assert report.baselines["ngram+draft"].speedup.mean > 0
    assert {row.draft.rsplit("/", 1)[1] for row in report.leaderboard} == {"head", "bad"}


def test_a_round_costs_its_steps_and_the_check(report):
    found = report.economics
    assert found.draft_pass_cost is None and found.cost_ratio > 0
    for length, cost in found.round_cost.items():
        assert cost > found.verify_cost[length + 1] + (length - 1) * found.cost_ratio
    assert "drafting 3 draft tokens costs" in found.why and "it needs" in found.why


def test_what_is_said_names_the_head(report, capsys):
    bench_tables(report)
    said = " ".join(capsys.readouterr().out.split())
    assert "the draft and ways to draft without a model" in said and "the head" in said
    for text in (said, html_report(report)):
        assert "(--method)" not in text
    assert "<td>the head</td>" in html_report(report)
    assert "a head on the target's states; alpha by depth (greedy): " in said
    assert "a head on the target&#39;s states" in html_report(report) or "head on the target" in html_report(report)


def test_samples_show_the_guess_of_the_round():
    target, draft = taught()
    answer = decode(target, draft, 4, Sampling(), PROMPTS[:1], seeds=[5])[0]
    prompt = Prompt(id="a", messages=({"role": "user", "content": "w1"},), category="c")
    sample = make_sample(target, draft, prompt, PROMPTS[0], answer, Sampling())
    start = 1
    for entry in answer.rounds:
        emitted = answer.token_ids[start : start + entry.emitted]
        chances = draft.to_vocabulary(guesses(target, draft, [*PROMPTS[0], *answer.token_ids[:start]], emitted))
        for depth, token in enumerate(emitted):
            q = float(chances[depth].softmax(-1)[token])
            assert sample.tokens[start + depth].q == pytest.approx(q, abs=1e-3)
        start += entry.emitted


def test_a_head_of_another_target_is_refused(files):
    with pytest.raises(
        IncompatibleModelsError, match=r"reads hidden states of 32 numbers, and those of .*wider have 48"
    ):
        bench(files, target=str(files / "wider"))


def test_packing_packs_the_target(files):
    found = bench(files, pack="float32", batch_sizes=())
    assert found.setup.pack == "float32" and found.lossless.greedy_identical


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "exact-match"}, "a head writes no answers alone"),
        ({"lenience_sweep": (0.5,)}, "--lenience-sweep"),
    ],
)
def test_what_a_head_cannot_do_is_refused_before_weights(files, settings, message, monkeypatch):
    monkeypatch.setattr("specdistill.evaluation.measure.load_pair", None)
    with pytest.raises(ConfigError, match=message):
        bench(files, **settings)
