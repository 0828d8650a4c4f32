"""A guided target in the decoder and in bench: exact output, alpha by hand, the guided target's own costs, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from by_hand import answer_logits, greedy_answer, guided_logits, next_logits, plain_model, prompt_of
from scipy.stats import chisquare
from tiny_models import make_model, make_tokenizer, perturbed, save
from tiny_runs import any_config, example, prompt_rows, write_folder

from specdistill import BenchConfig
from specdistill.data.prompts import load_prompts
from specdistill.decoding import Guidance, Sampling, SpeculativeDecoder, build_guidance, generate_plain
from specdistill.decoding.answers import write_answers
from specdistill.decoding.costs import measure_costs
from specdistill.decoding.proof import prove
from specdistill.errors import ConfigError
from specdistill.evaluation import measure, timed_run
from specdistill.evaluation.lenience_sweep import emitted_law
from specdistill.evaluation.measure import measure_draft
from specdistill.models import load_model
from specdistill.progress import Quiet
from specdistill.settings.chat import ChatSettings
from specdistill.settings.guidance import GuidanceSettings

NEGATIVE = (3, 45, 46, 4)
GUIDED = {"guidance": 0.8, "negative_prompt": "w40 w41"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = make_model(layers=3)
    models = {"target": target, "draft": perturbed(target, 0.05)}
    return write_folder(tmp_path_factory.mktemp("guided"), models, prompt_rows(8))


def bench(folder, **settings):
    places = {name: str(folder / name) for name in ("target", "draft")}
    given = {"prompts": str(folder / "prompts.jsonl"), "max_new_tokens": 16, "max_draft_tokens": 3}
    return measure_draft(BenchConfig.flat(**(places | given | {"num_draft_tokens": 2} | settings)))


def by_hand(folder, prompt, length):
    target = plain_model(folder / "target")

    def guided(prompt, answer):
        own, other = (next_logits(target, [*ids, *answer]) for ids in (prompt, NEGATIVE))
        return 1.8 * own - 0.8 * other

    return list(greedy_answer(target, prompt, length, guided))


@pytest.mark.parametrize("length", [1, 3])
def test_speculative_answers_are_the_guided_targets_own(folder, length):
    """Rows of unequal prompts that end at different times, shorter and longer than the negative prompt."""
    target, draft, guidance = make_model(layers=3), perturbed(make_model(layers=3), 0.05), Guidance(NEGATIVE, 0.8)
    prompts = [list(prompt_of("p3")), [3, 9, 4], [3, *range(10, 18), 4]]
    greedy = Sampling(temperature=0.0)
    decoder = SpeculativeDecoder(target, draft, num_draft_tokens=length, sampling=greedy, guidance=guidance)
    written = decoder.generate(prompts, max_new_tokens=20, seeds=[0, 0, 0])
    plain = generate_plain(target, prompts, sampling=greedy, max_new_tokens=20, seeds=[0, 0, 0], guidance=guidance)
    for prompt, fast, slow in zip(prompts, written, plain, strict=True):
        assert fast.token_ids == slow.token_ids == by_hand(folder, prompt, 20)
    alone = generate_plain(target, prompts, sampling=greedy, max_new_tokens=20, seeds=[0, 0, 0])
    assert [answer.token_ids for answer in alone] != [answer.token_ids for answer in plain]
    assert sum(entry.accepted for answer in written for entry in answer.rounds) > 0


def test_rows_that_end_early_leave_the_others_as_they_are():
    """The first row ends at its third word; the twins of the others, of other lengths, go on."""
    target, draft, guidance = make_model(layers=3), perturbed(make_model(layers=3), 0.05), Guidance(NEGATIVE, 0.8)
    prompts = [[3, *range(20, 30), 4], [3, 9, 4], list(prompt_of("p3"))]
    arguments = {"max_new_tokens": 16, "seeds": [0, 0, 0]}
    greedy = {"sampling": Sampling(temperature=0.0), "guidance": guidance}
    whole = generate_plain(target, prompts, **greedy, **arguments)
    stop = (target.tokenizer.decode(whole[0].token_ids[2:3]),)
    written = SpeculativeDecoder(target, draft, num_draft_tokens=2, **greedy).generate(
        prompts, stop_strings=stop, **arguments
    )
    plain = generate_plain(target, prompts, stop_strings=stop, **greedy, **arguments)
    for cut, slow, full in zip(written, plain, whole, strict=True):
        assert cut.token_ids == slow.token_ids == full.token_ids[: len(cut.token_ids)]
    lengths = [len(answer.token_ids) for answer in written]
    assert lengths[0] <= 3 < max(lengths)


@pytest.mark.parametrize("rule", ["sampled", "block", "argmax_draft"])
def test_sampled_output_follows_the_guided_distribution(rule):
    """The second token, which a draft proposed: chi-square against (1 + w) log p - w log p(negative)."""
    target = make_model(tokenizer=make_tokenizer(5), vocab_size=10, scale=1.5)
    guidance = Guidance((3, 6, 7, 4), 1.5)
    decoder = SpeculativeDecoder(
        target, perturbed(target, 0.5), num_draft_tokens=2, sampling=Sampling(), rule=rule, guidance=guidance
    )
    rows = 2000
    written = decoder.generate([[3, 5, 4]] * rows, max_new_tokens=2, seeds=list(range(rows)))

    def next_token(answer):
        own, other = (
            target.logits(target.hidden_states(torch.tensor([[*ids, *answer]]))[0, -1]).detach().double()
            for ids in ((3, 5, 4), guidance.negative_ids)
        )
        return (2.5 * own - 1.5 * other).softmax(-1)

    # A first token of 1 ends the answer.
    first = next_token(())
    second = sum(chance * next_token((token,)) for token, chance in enumerate(first) if token != 1)
    counts = np.bincount([one.token_ids[1] for one in written if len(one.token_ids) > 1], minlength=10)
    expected = (second / second.sum()).numpy() * counts.sum()
    often = expected > 4
    assert chisquare(counts[often], expected[often] * counts[often].sum() / expected[often].sum()).pvalue > 1e-4


def test_bench_measures_the_guided_target(folder):
    report = bench(folder, **GUIDED)
    assert report.lossless.checked and report.lossless.greedy_identical and report.lossless.prompts_compared == 8
    assert (report.setup.guidance, report.setup.negative_prompt) == (0.8, "w40 w41")
    target, draft = plain_model(folder / "target"), plain_model(folder / "draft")
    agreement, at_1 = [], []
    for row in prompt_rows(8):
        answered = example(prompt_of(row["id"]), by_hand(folder, prompt_of(row["id"]), 16))
        p, q = guided_logits(target, answered, NEGATIVE, 0.8), answer_logits(draft, answered)
        agreement += (p.argmax(-1) == q.argmax(-1)).double().tolist()
        at_1 += torch.minimum(p.softmax(-1), q.softmax(-1)).sum(-1).tolist()
    assert report.acceptance.tokens_scored == len(agreement)
    assert report.acceptance.alpha["greedy"].mean == pytest.approx(np.mean(agreement), rel=1e-5)
    assert report.acceptance.alpha_at_temperature_1["sampled"].mean == pytest.approx(np.mean(at_1), rel=1e-4)
    # Teacher-forced prediction and real decoding at temperature 0 are the same numbers.
    predicted = report.acceptance.predicted_mean_acceptance_length[2]
    assert report.acceptance.mean_acceptance_length.mean == pytest.approx(predicted, rel=1e-5)
    unguided = bench(folder)
    assert unguided.acceptance.alpha["greedy"].mean > report.acceptance.alpha["greedy"].mean
    assert "guidance" not in unguided.to_json()["setup"]


def test_sampling_is_measured_and_checked_under_guidance(folder):
    report = bench(folder, temperature=0.7, top_p=0.9, **GUIDED)
    assert report.lossless.greedy_identical and report.lossless.prompts_compared == 4


def test_the_sweep_of_lenience_is_the_guided_targets(folder):
    """Rows decode the guided target, and count what the rule changes in its distribution."""
    report = bench(folder, temperature=1.0, lenience_sweep=(0.3,), max_new_tokens=8, **GUIDED)
    exact, lenient = report.lenience_sweep
    assert exact.mean_acceptance_length.mean == report.acceptance.mean_acceptance_length.mean
    target, draft = (plain_model(folder / name) for name in ("target", "draft"))
    own, prompts = load_model(str(folder / "target")), load_prompts(str(folder / "prompts.jsonl"))
    encoded = [list(prompt_of(prompt.id)) for prompt in prompts]
    guided = {"guidance": Guidance(NEGATIVE, 0.8)}
    answers = write_answers(own, prompts, encoded, Sampling(), 8, 0, Quiet(), **guided)
    p = torch.cat([guided_logits(target, one, NEGATIVE, 0.8) for one in answers]).softmax(-1)
    q = torch.cat([answer_logits(draft, one) for one in answers]).softmax(-1)
    changed = (emitted_law(p, q, 0.3) - p).abs().sum(-1) / 2
    assert lenient.changed_tokens.mean == pytest.approx(float(changed.mean()), rel=1e-3)


def test_costs_and_the_greedy_check_are_the_guided_targets(folder, monkeypatch):
    seen = []

    def watch(module, name):
        original = getattr(module, name)

        def watched(*arguments, **named):
            seen.append((name, named["guidance"]))
            return original(*arguments, **named)

        monkeypatch.setattr(module, name, watched)

    watch(measure, "measure_costs")
    watch(timed_run.latency, "greedy_check")
    bench(folder, temperature=0.7, **GUIDED)
    assert seen == [("measure_costs", Guidance(NEGATIVE, 0.8)), ("greedy_check", Guidance(NEGATIVE, 0.8))]


def test_a_target_step_costs_twice_the_rows():
    """Target passes hold each row's twin; a draft step does not."""
    target = make_model(layers=3)
    # Its proof has passes of its own.
    prove(target)
    rows = []
    hook = target.base_model.register_forward_pre_hook(
        lambda module, arguments, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    settings = {"batch_size": 3, "max_draft_tokens": 1, "context": 8, "repeats": 1}
    draft = make_model(layers=1, seed=9)
    costs = measure_costs(target, draft, guidance=Guidance(NEGATIVE, 0.8), **settings)
    hook.remove()
    assert set(rows) == {6} and set(costs.verify_cost) == {1, 2}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"guidance": 1.0}, "--guidance and --negative-prompt go together"),
        ({"negative_prompt": "x"}, "--guidance and --negative-prompt go together"),
        ({"guidance": -1.0, "negative_prompt": "x"}, "--guidance must be at least 0"),
        ({**GUIDED, "engine": "transformers"}, "--guidance is for our decoder: --engine transformers would"),
        ({**GUIDED, "engine": "vllm"}, "--guidance is for our decoder: --engine vllm would"),
    ],
)
def test_what_cannot_be_guided_is_refused_before_loading(settings, text):
    with pytest.raises(ConfigError, match=text):
        BenchConfig.flat(target="t", draft="d", **settings)


def test_capped_logits_and_a_prompt_without_room_are_refused(folder, tmp_path):
    save(make_model("gemma2"), tmp_path / "gemma")
    with pytest.raises(ConfigError, match="logits are capped"):
        bench(folder, target=str(tmp_path / "gemma"), draft=str(tmp_path / "gemma"), **GUIDED)
    long = GuidanceSettings(guidance=1.0, negative_prompt=" ".join(["w1"] * 250))
    with pytest.raises(ConfigError, match=r"--negative-prompt has 252 tokens; with 16 new ones it exceeds .* 256"):
        build_guidance(long, make_model(), ChatSettings(), 16)
    assert any_config(**GUIDED).target_settings.guidance == 0.8
