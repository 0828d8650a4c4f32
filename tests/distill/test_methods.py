"""The effect of each option of train-draft: rewards, selection, guidance, adapters, scorers, text, other tokenizers."""

from __future__ import annotations

import importlib
import math

import pytest
import torch
from tiny_models import make_model, make_tokenizer, perturbed, save
from tiny_runs import (
    EXAMPLES,
    before_each_step,
    example,
    generate_config,
    gradient,
    history,
    loss_of,
    target_states,
    train,
)
from transformers import AutoModelForCausalLM, TrainerCallback

from specdistill import generate, load_model
from specdistill.data import Example, Prompt, Provenance
from specdistill.data.batch import collate
from specdistill.data.scorers import check_scorer, exact_match
from specdistill.decoding import Guidance, Sampling, generate_plain
from specdistill.distill.answers import scorers
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.training import lora
from specdistill.distill.training.loss import StepTotals, divergence_of, leave_one_out_advantages
from specdistill.distill.training.step import mixed_precision
from specdistill.errors import ConfigError, DataError, IncompatibleModelsError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill_kernels.fused_divergence.reference import divergence


def answer_logits(model, examples=EXAMPLES):
    batch = collate(examples)
    hidden = model.hidden_states(batch.input_ids, batch.attention_mask)[batch.predicting]
    return (hidden @ model.head_weight.T)[:, : model.vocab_size], batch.labels


def test_accumulation_gives_the_gradient_of_the_whole_step():
    """Micro-batches of unequal length: each token counts once, not each micro-batch."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    of_the_step = gradient(loss_of(draft, target, EXAMPLES).loss, draft)
    totals = StepTotals(11, 3)
    parts = [
        gradient(loss_of(draft, target, EXAMPLES[part], totals=totals).loss, draft) for part in (slice(2), slice(2, 3))
    ]
    torch.testing.assert_close(sum(parts), of_the_step, rtol=1e-4, atol=1e-7)


def test_micro_batches_train_the_same_draft(tiny, tmp_path):
    for name, size in (("at-once", 0), ("in-parts", 3)):
        train(tiny, tmp_path / name, micro_batch_size=size, method="gkd", steps=4)
    one, other = history(tmp_path / "at-once")[-1], history(tmp_path / "in-parts")[-1]
    for key in ("loss", "alpha", "grad_norm", "heldout_alpha_sampled"):
        assert other[key] == pytest.approx(one[key], rel=1e-3)


def test_ce_weight_mixes_cross_entropy_of_all_tokens_but_the_drafts_own():
    target, draft = make_model(), make_model(seed=2, layers=1)
    writers = (Provenance.TARGET, Provenance.DRAFT, Provenance.DRAFT, Provenance.GIVEN)
    mixed = [Example("a", (3, 5, 4), (6, 7, 8, 1), writers), EXAMPLES[1]]
    (logits, labels), (wanted, _) = answer_logits(draft, mixed), answer_logits(target, mixed)
    ce = divergence(logits, None, "ce", labels=labels)
    ce = ce[[0, 3, 4, 5]].sum() / 6
    expected = 0.7 * divergence(logits, wanted, "fkl").mean() + 0.3 * ce
    torch.testing.assert_close(loss_of(draft, target, mixed, ce_weight=0.3).loss, expected, rtol=1e-5, atol=1e-6)


def test_loss_temperature_is_not_the_sampling_temperature():
    target, draft = make_model(), make_model(seed=2, layers=1)
    (logits, _), (wanted, _) = answer_logits(draft), answer_logits(target)
    for settings, used in (
        ({"temperature": 0.5}, 0.5),
        ({"temperature": 0.5, "loss_temperature": 2.0}, 2.0),
        ({"temperature": 0.0}, 1.0),
    ):
        expected = divergence(logits / used, wanted / used, "fkl").mean()
        torch.testing.assert_close(loss_of(draft, target, EXAMPLES, **settings).loss, expected, rtol=1e-4, atol=1e-6)


def test_jsd_is_scaled_between_its_ends():
    assert divergence_of("jsd", None) == ("jsd", 0.5, 4.0)
    assert divergence_of("jsd", 0.0) == ("fkl", None, 1.0) and divergence_of("jsd", 1.0) == ("rkl", None, 1.0)
    assert divergence_of("skewed_kl", 0.2) == ("skewed_kl", 0.2, 1.0)


def test_adaspec_trains_on_the_tokens_where_the_draft_is_furthest_behind_the_reference():
    target, draft = make_model(), make_model(seed=2, layers=1)
    reference = perturbed(target, 0.05)
    (logits, _), (theirs, _), (wanted, _) = (answer_logits(model) for model in (draft, reference, target))
    behind = divergence(logits, wanted, "fkl") - divergence(theirs, wanted, "fkl")
    chosen = behind.topk(math.ceil(0.4 * 11)).indices
    expected = divergence(logits, wanted, "fkl")[chosen].mean()
    settings = {"reference": "r", "select_fraction": 0.4}
    torch.testing.assert_close(
        loss_of(draft, target, EXAMPLES, reference_model=reference, **settings).loss, expected, rtol=1e-4, atol=1e-6
    )


def test_adaspec_end_to_end(tiny, tmp_path):
    train(tiny, tmp_path / "reference", steps=20, target_fraction=1.0)
    summary = train(tiny, tmp_path / "out", reference=str(tmp_path / "reference"), target_fraction=1.0, steps=20)
    assert summary.after["sampled"] > summary.before["sampled"]


def test_reward_gradient_is_reinforce_mixed_with_the_divergence():
    """The mean over answers of (1 - a) r - a D, with D the mean over an answer's tokens: a long one counts once."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    own = [example(one.prompt_ids, one.answer_ids, Provenance.DRAFT, one.prompt_id) for one in EXAMPLES]
    advantages = torch.tensor([0.5, -1.0, 2.0])
    settings = {"reward": "m:f", "distill_weight": 0.25, "method": "gkd", "divergence": "rkl"}
    got = gradient(loss_of(draft, target, own, advantages, **settings).loss, draft)
    (logits, labels), (wanted, _) = answer_logits(draft), answer_logits(target)
    log_q = -divergence(logits, None, "ce", labels=labels)
    per_answer = torch.stack([part.sum() for part in log_q.split([4, 2, 5])])
    apart = torch.stack([part.mean() for part in divergence(logits, wanted, "rkl").split([4, 2, 5])])
    expected = (0.25 * apart - 0.75 * advantages * per_answer).mean()
    torch.testing.assert_close(got, gradient(expected, draft), rtol=1e-3, atol=1e-6)
    # In parts of unequal length the same.
    totals = StepTotals(11, 3)
    parts = [
        gradient(loss_of(draft, target, own[part], advantages[part], totals=totals, **settings).loss, draft)
        for part in (slice(1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), got, rtol=1e-3, atol=1e-6)


def test_a_reward_leaves_a_times_the_loss_of_answers_that_others_wrote():
    """Cross entropy that is mixed in is part of that loss."""
    target, draft = make_model(), make_model(seed=2, layers=1)
    settings = {"reward": "m:f", "distill_weight": 0.25, "method": "gkd", "divergence": "rkl", "ce_weight": 0.4}
    (logits, labels), (wanted, _) = answer_logits(draft), answer_logits(target)
    mixed = 0.6 * divergence(logits, wanted, "rkl") + 0.4 * divergence(logits, None, "ce", labels=labels)
    expected = 0.25 * torch.stack([part.mean() for part in mixed.split([4, 2, 5])]).mean()
    torch.testing.assert_close(loss_of(draft, target, EXAMPLES, **settings).loss, expected, rtol=1e-5, atol=1e-6)


def test_leave_one_out_advantages_are_unbiased_and_sum_to_zero():
    assert leave_one_out_advantages([3.0, 1.0, 2.0]) == [1.5, -1.5, 0.0]
    assert leave_one_out_advantages([2.0]) == [2.0]


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_a_run_whose_reward_rises_writes_a_model_whose_reward_rose(tiny, tmp_path, weight):
    """The reward counts a word; the start was written where alpha was watched, which falls as the reward rises."""
    settings = {"method": "gkd", "lmbda": 1.0, "steps": 60, "eval_every": 20, "learning_rate": 1e-2, "warmup": 0.0}
    summary = train(tiny, tmp_path / "out", reward="tiny_runs:count_w7", distill_weight=weight, **settings)
    last = history(tmp_path / "out")[-1]
    assert last["reward"] > 6 and last["watched"] == "heldout_reward"
    rewards = {}
    for name, model in (("start", tiny / "draft"), ("written", tmp_path / "out")):
        generate(generate_config(tiny, tmp_path / name, target=str(model), rollouts_per_prompt=2, seed=5))
        texts = [row["answer"] for row in read_rollouts(tmp_path / name)]
        rewards[name] = sum(text.split().count("w7") for text in texts) / len(texts)
    assert rewards["start"] < 1 and rewards["written"] > 6
    assert summary.watched == "reward" and summary.kept_step > 0
    assert summary.after["reward"] == pytest.approx(rewards["written"], abs=3)


def test_the_reward_counts_on_the_drafts_own_answers_only(tiny, tmp_path, monkeypatch):
    """Judged in each step of gkd's mixture: every answer that the draft wrote, and none that others wrote."""
    judged, steps = [], {}
    (tmp_path / "rewards_of_test.py").write_text(
        "JUDGED = []\n\ndef length(prompt, text):\n    JUDGED.append((prompt.id, text))\n    return len(text)\n"
    )
    monkeypatch.chdir(tmp_path)

    def before(step, examples):
        steps[step] = list(examples)
        judged.append(len(importlib.import_module("rewards_of_test").JUDGED))

    before_each_step(monkeypatch, before)
    settings = {"method": "gkd", "lmbda": 0.5, "steps": 8, "eval_every": 8, "reward": "rewards_of_test:length"}
    monkeypatch.syspath_prepend(tmp_path)
    train(tiny, tmp_path / "out", **settings)
    calls, tokenizer, kinds = importlib.import_module("rewards_of_test").JUDGED, make_model().tokenizer, set()
    # After the last step the held-out answers are judged.
    for (step, examples), start, end in zip(steps.items(), judged, [*judged[1:], judged[-1] + 8], strict=True):
        writers = {writer for example in examples for writer in example.provenance}
        kinds |= writers
        texts = [(one.prompt_id, tokenizer.decode(one.answer_ids, skip_special_tokens=True)) for one in examples]
        if step < 8 or writers == {int(Provenance.DRAFT)}:
            assert calls[start:end] == (texts if writers == {int(Provenance.DRAFT)} else [])
    assert len(kinds) == 2


def test_guidance_hidden_states_give_the_guided_distribution():
    target = make_model()
    guidance = Guidance((3, 40, 41, 4), 0.8)
    states = target_states(target, EXAMPLES, guidance)
    for asked, hidden in zip(EXAMPLES, states, strict=True):
        twin = example(guidance.negative_ids, asked.answer_ids)
        plain, negative = (
            target.logits(answer_hidden_states(target, [one])[0]).log_softmax(-1) for one in (asked, twin)
        )
        wanted = (1.8 * plain - 0.8 * negative).log_softmax(-1)
        torch.testing.assert_close(target.logits(hidden).log_softmax(-1), wanted, rtol=1e-4, atol=1e-4)


def test_guided_answers_follow_the_guided_argmax():
    target, guidance = make_model(), Guidance((3, 40, 41, 4), 0.8)
    prompts = [[3, 5, 4], [3, 9, 10, 11, 4]]
    written = generate_plain(
        target, prompts, sampling=Sampling(temperature=0.0), max_new_tokens=10, seeds=[0, 0], guidance=guidance
    )
    for prompt, generation in zip(prompts, written, strict=True):
        answer = tuple(generation.token_ids)
        logits = target.logits(target_states(target, [example(prompt, answer)], guidance)[0])
        assert tuple(logits.argmax(-1).tolist()) == answer
    alone = generate_plain(target, prompts, sampling=Sampling(temperature=0.0), max_new_tokens=10, seeds=[0, 0])
    assert [answer.token_ids for answer in alone] != [answer.token_ids for answer in written]


def test_guidance_end_to_end_and_where_it_is_refused(tiny, tmp_path):
    settings = {"guidance": 1.0, "negative_prompt": "w1 w2"}
    summary = train(tiny, tmp_path / "out", steps=30, eval_every=10, target_fraction=1.0, **settings)
    assert summary.after["sampled"] > summary.before["sampled"]
    save(make_model("gemma2"), tmp_path / "gemma")
    with pytest.raises(ConfigError, match="logits are capped"):
        train(tiny, tmp_path / "x", target=str(tmp_path / "gemma"), **settings)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_trains_adapters_only_and_saves_merged_weights(tiny, tmp_path, kind):
    start = make_model(kind, layers=1, seed=9)
    save(start, tmp_path / "draft")
    summary = train(
        tiny, tmp_path / "out", draft=str(tmp_path / "draft"), lora_rank=4, steps=20, target_fraction=1.0, patience=0
    )
    assert summary.after["sampled"] > summary.before["sampled"]
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    names = set(saved.state_dict())
    assert names == set(start.model.state_dict()), "an engine finds plain weights"
    assert torch.equal(saved.get_output_embeddings().weight, start.model.get_output_embeddings().weight)
    assert any(not torch.equal(saved.state_dict()[name], start.model.state_dict()[name]) for name in names)


def test_lora_merges_without_touching_the_model_that_trains():
    model = make_model(layers=1).model
    lora.add_adapters(model, 3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.tensor([[3, 9, 12, 4]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = lora.merged(model)
    torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not lora.has_adapters(merged) and lora.has_adapters(model)


def test_gradient_checkpointing_changes_nothing_but_memory(tiny, tmp_path):
    for name, on in (("plain", False), ("checkpointed", True)):
        train(tiny, tmp_path / name, gradient_checkpointing=on, method="gkd", lmbda=0.5, steps=6)
    one, other = history(tmp_path / "plain")[-1], history(tmp_path / "checkpointed")[-1]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_bfloat16_trains_with_a_float32_loss(tiny, tmp_path):
    summary = train(tiny, tmp_path / "out", precision="bfloat16", steps=30, target_fraction=1.0)
    assert summary.after["sampled"] > summary.before["sampled"]
    train(tiny, tmp_path / "again", precision="float32", steps=2)


@pytest.mark.parametrize(
    ("asked", "device", "native", "wanted"),
    [
        ("auto", "cuda", True, "bf16"),
        ("auto", "cuda", False, "no"),
        ("auto", "cpu", True, "no"),
        ("float32", "cuda", True, "no"),
        ("float16", "cuda", True, "fp16"),
    ],
)
def test_bfloat16_is_the_default_where_a_gpu_computes_in_it(asked, device, native, wanted, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    assert mixed_precision(asked, torch.device(device)) == wanted


def test_callbacks_see_every_step_and_may_stop(tiny, tmp_path):
    seen = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            seen.append((state.global_step, dict(logs)))

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 5:
                control.should_training_stop = True
            return control

    summary = train(tiny, tmp_path / "out", callbacks=[Watch()], steps=50, patience=0)
    assert summary.steps == 5
    assert [step for step, logs in seen if "loss" in logs] == [1, 2, 3, 4, 5]
    assert [step for step, logs in seen if "eval_heldout_alpha_sampled" in logs] == [0, 4, 5]
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_trackers_are_checked_before_models(tiny, tmp_path):
    with pytest.raises(ConfigError, match="--report-to nonsense"):
        train(tiny, tmp_path / "out", report_to=("nonsense",))
    assert not (tmp_path / "out").exists()


def test_tensorboard_gets_the_curves(tiny, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny, tmp_path / "out", report_to=("tensorboard",), steps=4)
    (events,) = (tmp_path / "out").rglob("events.out.tfevents.*")
    read = EventAccumulator(str(events))
    read.Reload()
    assert {"train/loss", "eval/heldout_alpha_sampled"} <= set(read.Tags()["scalars"])
    assert len(read.Scalars("train/loss")) == 4


PROMPTS = [Prompt(str(index), ({"role": "user", "content": f"w{index}"},), answer=f"w{index} w3") for index in range(3)]


def test_best_of_n_keeps_the_highest_score_and_then_the_likelier():
    target = make_model()
    tokenizer = target.tokenizer
    texts = ["w5 w6", "w7", "w0 w3"]
    answers = [example((3, 5, 4), tokenizer(text, add_special_tokens=False)["input_ids"], name="0") for text in texts]
    assert scorers.best_of_n(answers, PROMPTS, target, exact_match) == [answers[2]]
    likelihoods = scorers.mean_log_likelihoods(target, answers)
    logits, labels = answer_logits(target, answers[:1])
    wanted = logits.log_softmax(-1).gather(1, labels[:, None]).mean()
    assert likelihoods[0] == pytest.approx(wanted.item(), rel=1e-4)
    likeliest = answers[max(range(3), key=likelihoods.__getitem__)]
    assert scorers.best_of_n(answers, PROMPTS, target, None) == [likeliest]
    assert scorers.best_of_n(answers, PROMPTS, target, lambda prompt, text: 1.0) == [likeliest]


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_answers_that_score_the_same_the_likelier_is_kept_wherever_it_stands(turned):
    target = make_model()
    words = [example((3, 5, 4), (token,), name="0") for token in range(6, 20)]
    ranked = sorted(words, key=lambda row: scorers.mean_log_likelihoods(target, [row])[0])
    worst, likelier, likeliest = ranked[0], ranked[1], ranked[-1]
    wrong = target.decode(likeliest.answer_ids)
    answers = [likelier, likeliest, worst] if turned else [worst, likeliest, likelier]
    best = scorers.best_of_n(answers, PROMPTS, target, lambda prompt, text: float(text != wrong))
    assert best == [likelier], "the likeliest of all scores less"


@pytest.mark.parametrize(
    ("answer", "text", "score"),
    [
        ("42", "42", 1),
        ("42", "So we add.\nThe answer is 42.", 1),
        ("steps #### 1,200", "thinking\n#### 1200", 1),
        ("Paris", "  paris ", 1),
        ("42", "The answer is 421.", 0),
        ("42", "42 is wrong", 0),
        ("42", "", 0),
        ("$1,200,000.50", "1200000.50.", 1),
        # A comma that parts two things is part of the answer.
        ("12", "1,2", 0),
        ("[1, 2]", "[12]", 0),
        ("ab, c", "ab c", 0),
    ],
)
def test_exact_match(answer, text, score):
    assert exact_match(Prompt("p", (), answer=answer), text) == score


def test_scorers_are_found_or_refused(tmp_path, monkeypatch):
    (tmp_path / "scorers_of_test.py").write_text(
        "def good(prompt, text):\n    return len(text)\n\ndef bad(prompt, text):\n    return float('nan')\n"
    )
    monkeypatch.chdir(tmp_path)
    assert check_scorer("scorers_of_test:good", PROMPTS)(PROMPTS[0], "abc") == 3
    with pytest.raises(DataError, match="gave nan for prompt '0'"):
        check_scorer("scorers_of_test:bad", PROMPTS)(PROMPTS[0], "abc")
    for name, text in (("magic", "unknown --scorer"), ("scorers_of_test:none", "has no function none")):
        with pytest.raises(ConfigError, match=text):
            check_scorer(name, PROMPTS)
    with pytest.raises(DataError, match='no field "answer"'):
        check_scorer("exact-match", [Prompt("x", ())])
    # Any empty answer would be right.
    with pytest.raises(DataError, match="'x' has nothing to compare with in its field \"answer\" \\('so ####'\\)"):
        check_scorer("exact-match", [Prompt("x", (), answer="so ####")])
    (tmp_path / "huge_scores_of_test.py").write_text("def huge(prompt, text):\n    return 1e300\n")
    with pytest.raises(DataError, match=r"gave 1e\+300 .* a number of at most 1e\+30"):
        check_scorer("huge_scores_of_test:huge", PROMPTS)(PROMPTS[0], "abc")


def test_raw_text_is_trained_on(tiny, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(f"w{(i * k) % 60}" for k in range(40)) for i in range(5)))
    summary = train(tiny, tmp_path / "out", method="supervised-kd", text=str(tmp_path / "text.txt"), steps=30)
    assert summary.after["sampled"] > summary.before["sampled"]
    with pytest.raises(DataError, match=r"--text nowhere.txt does not exist"):
        train(tiny, tmp_path / "x", method="sft", text="nowhere.txt")


@pytest.mark.parametrize("method", ["seqkd", "sft", "best-of-n"])
def test_text_methods_work_across_tokenizers(tiny, tmp_path, method):
    summary = train(
        tiny, tmp_path / "out", draft=str(tiny / "foreign"), method=method, steps=30, patience=0, eval_every=10
    )
    assert summary.measure.startswith("log-likelihood")
    if method != "sft":
        assert summary.after["text"] > summary.before["text"]
    trained = load_model(str(tmp_path / "out"), "draft")
    assert trained.tokenizer.get_vocab() == make_tokenizer(50, "other").get_vocab()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "assistant_tokenizer" in card and "vllm serve" not in card


@pytest.mark.parametrize("method", ["supervised-kd", "gkd", "distillspec", "skd"])
def test_logit_methods_refuse_another_tokenizer(tiny, tmp_path, method):
    with pytest.raises(IncompatibleModelsError, match="different tokenizers"):
        train(tiny, tmp_path / "out", draft=str(tiny / "foreign"), method=method)


def test_a_divergence_on_chosen_answers_refuses_another_tokenizer(tiny, tmp_path):
    """best-of-n learns from text by default only: with --divergence it compares logits, id by id."""
    with pytest.raises(IncompatibleModelsError, match="different tokenizers"):
        train(tiny, tmp_path / "out", draft=str(tiny / "foreign"), method="best-of-n", divergence="fkl")


def test_skd_logs_its_rejections(tiny, tmp_path):
    train(tiny, tmp_path / "out", method="skd", skd_top_k=5, skd_num_draft_tokens=3)
    entry = history(tmp_path / "out")[-1]
    assert 0 < entry["skd_rejection_rate"] <= 1 and len(entry["skd_rejection_by_position"]) == 3
