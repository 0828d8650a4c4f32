"""Targets with recurrent layers: everything that needs no rollback works on them, and the rest is refused early."""

from __future__ import annotations

import math

import pytest
import torch
from family_models import PREDICT, STATE, family_model
from tiny_models import make_model
from tiny_runs import (
    EXAMPLES,
    annotate_config,
    example,
    generate_config,
    gradient,
    history,
    loss_of,
    prompt_rows,
    train,
    write_folder,
)

from specdistill import BenchConfig, annotate, bench, generate, load_model
from specdistill.data.soft_labels import LabelStore
from specdistill.decoding import Sampling
from specdistill.decoding.costs import measure_costs
from specdistill.distill.answers.shards import find_shards, read_rollouts
from specdistill.distill.methods import METHODS
from specdistill.errors import ModelError
from specdistill.evaluation.acceptance import answer_hidden_states, score
from specdistill.serving.online import RejectionLog

RECURRENT = [kind for kind, reason in PREDICT.items() if reason == STATE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A recurrent target, a plain draft, prompts, and the target's answers to them."""
    models = {"target": family_model("qwen3_5_text"), "draft": make_model(layers=1, seed=9, context=128)}
    prompts = [
        row | {"prompt": " ".join([row["prompt"], *["w9"] * (index % 5)])} for index, row in enumerate(prompt_rows())
    ]
    folder = write_folder(tmp_path_factory.mktemp("recurrent"), models, prompts)
    generate(generate_config(folder, folder / "answers", temperature=0.0))
    return folder


def own_logits(model, one):
    """Logits of an answer's tokens, of the whole model as transformers runs it."""
    ids = torch.tensor([[*one.prompt_ids, *one.answer_ids]])
    return model.model(ids).logits[0, len(one.prompt_ids) - 1 : -1, : model.vocab_size]


def test_answers_of_prompts_of_different_length_are_the_targets_own(folder):
    target = load_model(str(folder / "target"))
    rows = read_rollouts(folder / "answers")
    assert len({len(row["prompt_ids"]) for row in rows}) > 2
    for row in rows[:8]:
        prompt = torch.tensor([row["prompt_ids"]])
        wanted = target.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert wanted[0, prompt.shape[1] :].tolist() == list(row["answer_ids"])


def test_stored_labels_are_the_targets_own(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "labels"))
    target = load_model(str(folder / "target"))
    store = LabelStore(find_shards(tmp_path / "labels"))
    row = store.rows()[0]
    one = example(row["prompt_ids"], row["answer_ids"])
    store.place(one, 0)
    (labels,) = store.soft_labels([one])
    with torch.inference_mode():
        best = own_logits(target, one).log_softmax(-1).topk(8)
    torch.testing.assert_close(labels.log_probs.exp(), best.values.exp(), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "skd"])
def test_every_other_method_trains_a_step(folder, tmp_path, method):
    settings = {
        "best-of-n": {"scorer": "exact-match", "rollouts_per_prompt": 2, "score_threshold": 0.0},
        "online": {"online": str(tmp_path / "log")},
        "sft": {},
    }.get(method, {})
    if method == "online":
        with RejectionLog(tmp_path / "log") as log:
            for number in range(20):
                log.log([3, 5 + number, 4], 5, 6, [6, 7], [1.0, 0.0])
    summary = train(folder, tmp_path / "out", method=method, steps=1, eval_every=1, **settings)
    assert summary is not None and math.isfinite(history(tmp_path / "out")[-1]["loss"])


def test_skd_is_refused_before_weights_are_read(folder, tmp_path):
    for file in (folder / "target").glob("*.safetensors"):
        file.rename(tmp_path / file.name)
    try:
        with pytest.raises(ModelError, match=r"--method skd .*linear_attention keep a state.*--engine") as refusal:
            train(folder, tmp_path / "out", method="skd")
    finally:
        for file in tmp_path.glob("*.safetensors"):
            file.rename(folder / "target" / file.name)
    assert "\n" not in str(refusal.value) and not (tmp_path / "out").exists()


def test_predicted_acceptance_is_that_of_the_models_own_logits(folder):
    target, draft = load_model(str(folder / "target")), load_model(str(folder / "draft"), "draft")
    records = score(target, draft, EXAMPLES, Sampling())
    with torch.inference_mode():
        for one, record in zip(EXAMPLES, records, strict=True):
            own, proposed = own_logits(target, one).softmax(-1), own_logits(draft, one).softmax(-1)
            wanted = torch.minimum(own, proposed).sum(-1)
            assert record.alpha["sampled"] == pytest.approx(wanted.numpy(), abs=1e-4)
            best = proposed.argmax(-1)
            assert record.alpha["argmax_draft"] == pytest.approx(own.gather(1, best[:, None])[:, 0].numpy(), abs=1e-4)


def test_long_answers_are_scored_each_in_a_pass_of_its_own(folder):
    target = load_model(str(folder / "target"))
    target.config.max_position_embeddings = 4096
    long = [example(range(5, 9), [5 + (7 * i) % 60 for i in range(2050)]), EXAMPLES[0]]
    states = answer_hidden_states(target, long)
    with torch.inference_mode():
        for one, found in zip(long, states, strict=True):
            ids = torch.tensor([[*one.prompt_ids, *one.answer_ids]])
            wanted = target.base_model(ids).last_hidden_state[0, len(one.prompt_ids) - 1 : -1]
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_bench_predicts_and_says_what_it_does_not_time(folder):
    settings = {"num_prompts": 4, "max_new_tokens": 8, "temperature": 1.0, "max_draft_tokens": 3}
    report = bench(
        BenchConfig.flat(
            target=str(folder / "target"),
            draft=str(folder / "draft"),
            prompts=str(folder / "prompts.jsonl"),
            **settings,
        )
    )
    assert 0 < report.acceptance.alpha["sampled"].mean < 1
    assert set(report.economics.predicted_speedup) == {1, 2, 3} and report.economics.cost_ratio
    assert not report.latency.is_timed and report.economics.verdict in ("unknown", "cannot pay")
    if report.economics.verdict == "unknown":
        assert "not timed" in report.economics.why and "bench --engine" in report.economics.why
    assert report.partial is None and not report.lossless.checked


@pytest.mark.parametrize("kind", RECURRENT)
def test_costs_of_every_recurrent_type_are_measured(kind):
    costs = measure_costs(
        family_model(kind), make_model(layers=1), batch_size=2, max_draft_tokens=2, context=8, repeats=1
    )
    assert costs.cost_ratio > 0 and set(costs.verify_cost) == {1, 2, 3}


@pytest.mark.parametrize("kind", ["qwen3_5_text", "cohere", "granite", "phi", "gemma2"])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_loss_is_that_of_the_models_own_logits(kind, role):
    """Scaled logits, a head with a bias, a softcap and recurrent layers, as target and as draft."""
    models = {"target": make_model(seed=1), "draft": make_model(seed=2, layers=1)} | {role: family_model(kind)}
    target, draft = models["target"], models["draft"]
    found = loss_of(draft, target, EXAMPLES, divergence="fkl")
    losses = []
    for one in EXAMPLES:
        with torch.no_grad():
            own = own_logits(target, one).log_softmax(-1)
        proposed = own_logits(draft, one).log_softmax(-1)
        losses.append((own.exp() * (own - proposed)).sum(-1))
    wanted = torch.cat(losses).mean()
    assert found.loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    torch.testing.assert_close(gradient(found.loss, draft), gradient(wanted, draft), rtol=1e-3, atol=1e-4)
