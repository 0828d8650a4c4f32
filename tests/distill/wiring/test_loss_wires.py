"""Which loss each method and flag minimises, at which temperature and against which target: a step's loss by hand."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import (
    DRAFT,
    GIVEN,
    LOSSES,
    TARGET,
    ByHand,
    answer_logits,
    close,
    frozen_run,
    greedy_answer,
    jsd,
    kl,
    lk_lambda,
    next_logits,
    plain_model,
    prompt_of,
    rows_without_answers,
    watched_run,
)
from tiny_models import make_model, perturbed, save
from tiny_runs import annotate_config, generate_config, write_rows
from transformers import AutoModelForCausalLM

from specdistill import annotate, generate
from specdistill.distill.answers.shards import read_rollouts, to_example
from specdistill.serving.online import RejectionLog

NEGATIVE = (3, 45, 46, 4)
"""Ids of the negative prompt "w40 w41" in the chat template."""
GUIDANCE = {"guidance": 0.8, "negative_prompt": "w40 w41"}


@pytest.fixture(scope="module")
def hand(tiny):
    return ByHand(tiny)


# ---- the method's own loss


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"method": "supervised-kd"}, "fkl"),
        ({"method": "distillspec"}, "fkl"),
        ({"method": "distillspec", "target_fraction": 0.0}, "fkl"),
        ({"method": "skd"}, "fkl"),
        ({"method": "gkd", "lmbda": 0.0}, "jsd"),
        ({"method": "gkd", "lmbda": 1.0}, "jsd"),
    ],
)
def test_a_methods_own_divergence(tiny, tmp_path, hand, settings, kind):
    run = frozen_run(tiny, tmp_path / "out", **settings)
    assert run.losses == [close(hand.loss(kind, step)) for step in run.steps]
    alphas = [1 - hand.loss("tvd", step) for step in run.steps]
    assert [step.alpha for step in run.measured] == [close(alpha) for alpha in alphas]


@pytest.mark.parametrize("method", ["sft", "seqkd", "best-of-n"])
def test_methods_that_learn_from_text_minimise_cross_entropy(tiny, tmp_path, hand, method):
    run = frozen_run(tiny, tmp_path / "out", method=method)
    assert run.losses == [close(float(hand.cross_entropy(step).mean())) for step in run.steps]


@pytest.mark.parametrize("method", ["gkd", "supervised-kd", "best-of-n", "skd"])
@pytest.mark.parametrize("kind", LOSSES)
def test_divergence_replaces_it(tiny, tmp_path, hand, method, kind):
    run = frozen_run(tiny, tmp_path / "out", method=method, divergence=kind, steps=1)
    assert run.losses == [close(hand.loss(kind, run.steps[0]))]


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({"divergence": "jsd", "beta": 0.2}, lambda p, q: jsd(p, q, 0.2)),
        ({"divergence": "jsd", "beta": 0.0}, kl),
        ({"divergence": "skewed_kl", "beta": 0.4}, lambda p, q: kl(p, 0.4 * p + 0.6 * q)),
        ({"divergence": "lk_lambda", "eta": 0.5}, lambda p, q: lk_lambda(p, q, 0.5)),
    ],
)
def test_beta_and_eta_reach_the_loss(tiny, tmp_path, hand, settings, loss):
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", steps=1, **settings)
    assert run.losses == [close(float(loss(*hand.probabilities(run.steps[0])).mean()))]


# ---- temperatures and filters


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 0.5, "loss_temperature": 2.0}, 2.0),
        ({"temperature": 0.0, "rule": "greedy"}, 1.0),
        ({"temperature": 0.0, "rule": "greedy", "loss_temperature": 0.3}, 0.3),
        ({"top_k": 2, "top_p": 0.5, "min_p": 0.1}, 1.0),
    ],
)
@pytest.mark.parametrize("method", ["supervised-kd", "distillspec", "skd"])
def test_the_divergence_is_at_the_loss_temperature_and_knows_no_filter(
    tiny, tmp_path, hand, method, settings, temperature
):
    run = frozen_run(tiny, tmp_path / "out", method=method, **settings)
    assert run.losses == [close(hand.loss("fkl", step, temperature=temperature)) for step in run.steps]


def test_cross_entropy_is_at_the_loss_temperature_too(tiny, tmp_path, hand):
    run = frozen_run(tiny, tmp_path / "out", method="sft", temperature=0.5)
    assert run.losses == [close(float(hand.cross_entropy(step, 0.5).mean())) for step in run.steps]


# ---- what is mixed in, left out or weighed


@pytest.mark.parametrize("method", ["supervised-kd", "skd"])
def test_ce_weight_mixes_cross_entropy_of_every_token_but_the_drafts_own(tiny, tmp_path, hand, method):
    run = frozen_run(tiny, tmp_path / "out", method=method, ce_weight=0.3)
    for step, loss in zip(run.steps, run.losses, strict=True):
        foreign = torch.tensor([writer != DRAFT for one in step for writer in one.provenance])
        entropy = hand.cross_entropy(step)[foreign].sum() / len(foreign)
        assert loss == close(0.7 * hand.loss("fkl", step) + 0.3 * float(entropy))
        assert method == "supervised-kd" or 0 < int(foreign.sum()) < len(foreign)


def test_ce_weight_leaves_steps_on_the_drafts_own_answers_alone(tiny, tmp_path, hand):
    run = frozen_run(tiny, tmp_path / "out", method="gkd", lmbda=1.0, divergence="fkl", ce_weight=0.3)
    assert run.losses == [close(0.7 * hand.loss("fkl", step)) for step in run.steps]


@pytest.mark.parametrize("fraction", [None, 0.15])
def test_the_reference_selects_the_tokens_where_the_draft_lags_most(tiny, tmp_path, hand, fraction):
    reference = perturbed(make_model(layers=3), 0.1)
    save(reference, tmp_path / "reference")
    settings = {} if fraction is None else {"select_fraction": fraction}
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", reference=str(tmp_path / "reference"), **settings)
    theirs = plain_model(tmp_path / "reference")
    for step, loss in zip(run.steps, run.losses, strict=True):
        p, q = hand.probabilities(step)
        other = torch.cat([answer_logits(theirs, one) for one in step]).softmax(-1)
        own = kl(p, q)
        chosen = (own - kl(p, other)).topk(math.ceil((fraction or 0.4) * len(own))).indices
        assert loss == close(float(own[chosen].mean()))


# ---- rewards


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Settings of a reward that counts an answer's words."""
    (tmp_path / "rewards_by_hand.py").write_text("def words(prompt, text):\n    return float(len(text.split()))\n")
    monkeypatch.chdir(tmp_path)
    return {"reward": "rewards_by_hand:words"}


def words_of(tokenizer, example) -> float:
    return float(len(tokenizer.decode(example.answer_ids, skip_special_tokens=True).split()))


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "distillspec", "target_fraction": 0.5, "steps": 4},
        {"method": "gkd", "lmbda": 0.5, "steps": 8},
    ],
)
def test_a_reward_counts_on_the_drafts_own_answers_only(tiny, tmp_path, judged, settings):
    run = frozen_run(tiny, tmp_path / "out", **settings, **judged)
    own = [writers == {DRAFT} for writers in run.writers]
    assert len(set(own)) == 2, "both kinds of step were seen"
    assert [step.reward is not None for step in run.measured] == own
    assert [advantages is not None for advantages in run.advantages] == own


def test_the_reward_of_an_answer_is_the_functions_and_its_advantage_that_over_the_others(tiny, tmp_path, judged):
    run = frozen_run(tiny, tmp_path / "out", method="gkd", lmbda=1.0, **judged)
    tokenizer = make_model().tokenizer
    for step, measured, advantages in zip(run.steps, run.measured, run.advantages, strict=True):
        rewards = [words_of(tokenizer, one) for one in step]
        assert len(set(rewards)) > 1 and measured.reward == close(sum(rewards) / len(rewards))
        others = [(sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
        assert advantages == [close(reward - other) for reward, other in zip(rewards, others, strict=True)]


def test_with_a_reward_the_divergence_is_reverse_kl_times_its_weight(tiny, tmp_path, hand, monkeypatch):
    """Equal rewards have no advantage, so that only the divergence is left."""
    (tmp_path / "rewards_all_equal.py").write_text("def one(prompt, text):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    losses = {}
    for weight in (0.75, 0.25, None):
        settings = {} if weight is None else {"distill_weight": weight}
        settings |= {"reward": "rewards_all_equal:one", "max_new_tokens": 2, "steps": 1}
        run = frozen_run(tiny, tmp_path / f"out-{weight}", method="gkd", lmbda=1.0, **settings)
        losses[weight] = run.losses[0]
        assert run.steps[0] == run.examples
    whole = losses[0.75] / 0.75
    assert losses[0.25] == close(0.25 * whole) and losses[None] == close(0.5 * whole)
    kinds = {kind: hand.loss(kind, run.examples) for kind in ("fkl", "jsd")}
    assert all(whole != close(value) for value in kinds.values())


def test_the_rewards_gradient_is_at_the_temperature_of_sampling(tiny, tmp_path, judged):
    """The answers were sampled there: REINFORCE has no other log-probabilities."""
    settings = {"method": "gkd", "lmbda": 1.0, "temperature": 0.7, "distill_weight": 0.0, "steps": 1}
    losses = [
        frozen_run(tiny, tmp_path / str(temperature), loss_temperature=temperature, **settings, **judged).losses[0]
        for temperature in (0.7, 4.0)
    ]
    assert losses[0] == close(losses[1]) and losses[0] != 0


# ---- the target that is distilled


@pytest.mark.parametrize(
    "settings", [{"method": "supervised-kd"}, {"method": "gkd", "lmbda": 1.0, "divergence": "fkl"}]
)
def test_guidance_reaches_the_loss(tiny, tmp_path, hand, settings):
    run = frozen_run(tiny, tmp_path / "out", **settings, **GUIDANCE)
    for step, loss in zip(run.steps, run.losses, strict=True):
        assert loss == close(hand.loss("fkl", step, guidance=(NEGATIVE, 0.8)))
        assert loss != close(hand.loss("fkl", step))


def guided_answers(folder, names) -> dict[str, tuple[int, ...]]:
    """Greedy answers of the guided target; they differ from those of the target alone."""
    target = plain_model(folder / "target")

    def guided(prompt, answer):
        own, other = (next_logits(target, [*ids, *answer]) for ids in (prompt, NEGATIVE))
        return 1.8 * own - 0.8 * other

    wanted = {name: greedy_answer(target, prompt_of(name), 12, guided) for name in names}
    assert wanted != {name: greedy_answer(target, prompt_of(name), 12) for name in wanted}
    return wanted


@pytest.mark.parametrize("method", ["seqkd", "distillspec"])
def test_guidance_reaches_the_targets_answers(tiny, tmp_path, method):
    run = frozen_run(
        tiny, tmp_path / "out", method=method, temperature=0.0, rule="greedy", rollouts_per_prompt=1, **GUIDANCE
    )
    targets = {one.prompt_id: one.answer_ids for step in run.steps[:1] for one in step}
    assert targets == guided_answers(tiny, targets)
    held_out = {row["prompt_id"]: tuple(row["answer_ids"]) for row in read_rollouts(run.output / "heldout")}
    assert held_out == guided_answers(tiny, held_out)


def test_guidance_reaches_the_scores(tiny, tmp_path, hand):
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", **GUIDANCE)
    answers = [to_example(row) for row in read_rollouts(run.output / "heldout")]
    p, q = hand.probabilities(answers, guidance=(NEGATIVE, 0.8))
    assert run.history[0]["heldout_alpha_sampled"] == close(float(torch.minimum(p, q).sum(-1).mean()))


def test_soft_labels_are_the_targets_likeliest_ids_with_the_rest_as_one_outcome(tiny, tmp_path, hand):
    generate(generate_config(tiny, tmp_path / "answers", rollouts_per_prompt=1))
    labels = annotate_config(
        tiny, tmp_path / "labels", rollouts=str(tmp_path / "answers"), top_k=4, precision="float32"
    )
    annotate(labels)
    run = frozen_run(tiny, tmp_path / "out", soft_labels=str(tmp_path / "labels"), method="distillspec")
    for step, loss in zip(run.steps, run.losses, strict=True):
        p, q = hand.probabilities(step)
        best = p.topk(4).indices
        kept = [torch.cat([x.gather(1, best), 1 - x.gather(1, best).sum(1, keepdim=True)], 1) for x in (p, q)]
        assert loss == pytest.approx(float(kl(*kept).mean()), rel=1e-3)
        assert {writer for one in step for writer in one.provenance} == {TARGET}


def test_online_trains_on_the_logged_correction_and_the_logged_distribution(tiny, tmp_path, hand):
    context, ids = [3, 9, 12, 4, 7], torch.tensor([30, 31, 32])
    logits, log_mass = torch.tensor([2.0, 1.0, 0.0]), 3.0
    with RejectionLog(tmp_path / "log") as log:
        log.log(context, 5, 31, ids, logits, log_mass)
    run = frozen_run(tiny, tmp_path / "out", method="online", online=str(tmp_path / "log"), steps=1, batch_size=1)
    (one,) = run.steps[0]
    assert (one.prompt_ids, one.answer_ids, set(one.provenance)) == (tuple(context), (31,), {TARGET})
    p = (logits - log_mass).double().exp()
    q = next_logits(hand.draft, context).softmax(-1)[ids]
    both = [torch.cat([x, 1 - x.sum(0, keepdim=True)])[None] for x in (p, q)]
    assert run.losses == [close(float(kl(*both)))]


# ---- the optimiser's settings


def one_step(tiny, output, **settings):
    """Weights before and after one step on given answers."""
    given = {"method": "sft", "steps": 1, "learning_rate": 1e-3, "warmup": 1.0, "patience": 0, "eval_every": 1}
    start = AutoModelForCausalLM.from_pretrained(tiny / "draft").state_dict()
    return start, watched_run(tiny, output, **(given | settings)).weights


def test_weight_decay_shrinks_what_no_gradient_touches(tiny, tmp_path):
    """AdamW: w (1 - rate * decay) where the gradient is 0, as it is for words that no text holds."""
    start, after = one_step(tiny, tmp_path / "out", weight_decay=0.5, batch_size=1)
    name = "model.embed_tokens.weight"
    unseen = [row for row in range(5, 65) if torch.allclose(after[name][row], start[name][row] * (1 - 1e-3 * 0.5))]
    assert len(unseen) > 40
    start, after = one_step(tiny, tmp_path / "none", batch_size=1)
    assert sum(torch.equal(after[name][row], start[name][row]) for row in range(5, 65)) > 40


def test_max_grad_norm_and_the_learning_rate_bound_a_step(tiny, tmp_path):
    """Adam's first step moves every weight by the rate, unless clipping brings gradients below its epsilon of 1e-8."""
    name, moves = "lm_head.weight", {}
    for case, settings in (("plain", {}), ("slow", {"learning_rate": 1e-4}), ("clipped", {"max_grad_norm": 1e-12})):
        start, after = one_step(tiny, tmp_path / case, **settings)
        moves[case] = float((after[name] - start[name]).abs().max())
    assert moves["plain"] == pytest.approx(1e-3, rel=0.05) and moves["slow"] == pytest.approx(1e-4, rel=0.05)
    assert moves["clipped"] < 1e-6


def test_lora_rank_is_that_of_the_adapters(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="sft", lora_rank=3, steps=1)
    ranks = {tensor.shape[0] for name, tensor in run.weights.items() if "lora_A" in name}
    assert ranks == {3}


def test_the_gradient_norm_and_the_mean_count_every_token_once_in_any_micro_batch(tiny, tmp_path, hand):
    for size in (0, 1, 3):
        run = frozen_run(tiny, tmp_path / str(size), method="distillspec", micro_batch_size=size, steps=1)
        assert run.losses == [close(hand.loss("fkl", run.steps[0]))]
        assert run.measured[0].tokens == sum(len(one.answer_ids) for one in run.steps[0])


def test_provenance_of_a_mixed_run_is_never_the_prompts(tiny, tmp_path):
    write_rows(tmp_path / "p.jsonl", rows_without_answers())
    run = frozen_run(tiny, tmp_path / "out", method="gkd", lmbda=0.5, steps=8, prompts=str(tmp_path / "p.jsonl"))
    assert {GIVEN} not in run.writers and {TARGET} in run.writers and {DRAFT} in run.writers
