"""`specdistill annotate` and training from it: labels as stored, their loss, and no need of the target any more."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pytest
import torch
from tiny_models import make_model, make_tokenizer, save
from tiny_runs import (
    annotate_config,
    before_each_step,
    generate_config,
    same_weights,
    spoil_loss,
    standard_models,
    train_config,
    write_folder,
)

from specdistill import annotate, generate, load_model, train_draft
from specdistill.data import Provenance, soft_labels
from specdistill.data.soft_labels import LabelStore
from specdistill.decoding import Sampling
from specdistill.distill.answers.shards import find_shards, read_rollouts, to_example
from specdistill.distill.reproduce import reproduce
from specdistill.distill.training.heldout import HeldOut, HeldOutLabels
from specdistill.errors import ConfigError, DataError, OutputError, SpecdistillError
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill_kernels import fused_divergence


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The standard models and prompts, and two answers of the target to each prompt."""
    folder = write_folder(tmp_path_factory.mktemp("annotating"), standard_models())
    generate(generate_config(folder, folder / "answers", rollouts_per_prompt=2, max_new_tokens=16, shard_size=8))
    return folder


def supervised_config(folder, output, **settings):
    """The answers that labels are trained on have 16 tokens."""
    return train_config(folder, output, **({"method": "supervised-kd", "max_new_tokens": 16} | settings))


def stored(directory):
    """The labels in a directory, and the answers that they belong to."""
    store = LabelStore(find_shards(directory))
    answers = [to_example(row) for row in store.rows()]
    for number, answer in enumerate(answers):
        store.place(answer, number)
    return store, answers


def true_log_probs(folder, answer, temperature=1.0):
    target = load_model(str(folder / "target"))
    logits = target.logits(answer_hidden_states(target, [answer])[0])
    return (logits.double() / temperature).log_softmax(-1)


def test_the_likeliest_ids_are_stored_as_the_target_has_them(folder, tmp_path):
    summary = annotate(annotate_config(folder, tmp_path / "out", temperature=0.7))
    store, answers = stored(tmp_path / "out")
    assert len(answers) == summary.answers == 48 and not store.drawn
    labels = store.token_labels(answers[3])
    best = true_log_probs(folder, answers[3], 0.7).topk(8)
    assert (labels.ids.reshape(-1, 8) == best.indices).all()
    assert torch.allclose(labels.log_probs.reshape(-1, 8).exp().double(), best.values.exp(), rtol=2e-3, atol=1e-6)
    # No renormalisation: what is left out stays left out.
    assert (labels.log_probs.reshape(-1, 8).exp().sum(1) < 1).all()
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert rows.features["label_ids"].feature.dtype == "uint16" and rows[0]["messages"][0]["role"] == "user"


def test_bytes_per_token_are_said_beforehand_and_measured_after(folder, tmp_path):
    summary = annotate(annotate_config(folder, tmp_path / "out"))
    # 8 ids of 2 bytes, 8 log-probabilities of 2 bytes, and the count.
    assert summary.planned_bytes_per_token == 34 and summary.labels_per_token == 8
    assert 0 < summary.bytes_per_token < 60
    wide = annotate(annotate_config(folder, tmp_path / "wide", precision="float32"))
    assert wide.planned_bytes_per_token == 50


def test_a_disk_without_room_is_found_before_the_target_is_loaded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    monkeypatch.setattr("specdistill.models.load.load_model", lambda *_, **__: pytest.fail("the target was loaded"))
    with pytest.raises(OutputError, match="lower --top-k"):
        annotate(annotate_config(folder, tmp_path / "out"))


def test_drawn_labels_are_unbiased(folder, tmp_path):
    """Their mean over many seeds is the distribution: a z-test of every id that is likely enough."""
    log_probs = true_log_probs(folder, stored_answer(folder))[:4]
    runs, draws = 200, 16
    mean = torch.zeros_like(log_probs)
    for seed in range(runs):
        labels = soft_labels.drawn(log_probs, draws, seed)
        assert labels.draws is not None and int(labels.counts.sum()) == len(labels.ids)
        rows = torch.arange(4).repeat_interleave(labels.counts)
        mean[rows, labels.ids] += labels.draws / draws / runs
    spread = (log_probs.exp() * (1 - log_probs.exp()) / (runs * draws)).sqrt()
    likely = log_probs.exp() > 0.01
    z = ((mean - log_probs.exp()) / spread)[likely]
    assert z.abs().max() < 4.5 and 0.7 < z.std() < 1.3


def stored_answer(folder):
    return to_example(read_rollouts(folder / "answers")[5])


@pytest.mark.parametrize("k", [4, 16])
def test_the_gradient_is_off_by_at_most_twice_what_is_left_out(folder, tmp_path, k):
    """The stated bias, in logits: sum_v |gradient - true gradient| <= 2 tail, per token, for forward KL."""
    annotate(annotate_config(folder, tmp_path / "out", top_k=k, precision="float32"))
    store, answers = stored(tmp_path / "out")
    longest = max(answers, key=lambda answer: len(answer.answer_ids))
    log_p = true_log_probs(folder, longest)
    tokens, vocab = log_p.shape
    torch.manual_seed(0)
    # An identity head: gradients of the hidden states are those of the logits.
    logits = torch.randn(tokens, vocab, requires_grad=True)
    soft = store.soft_labels([longest])[0]
    head, weights = torch.eye(vocab), torch.ones(tokens)
    fused_divergence(logits, head, None, None, weights, kind="fkl", soft_labels=soft).loss.backward()
    assert logits.grad is not None
    exact = logits.detach().double().softmax(-1) - log_p.exp()
    off = (logits.grad.double() - exact).abs().sum(-1)
    tail = 1 - log_p.exp().topk(k).values.sum(-1)
    assert (off <= 2 * tail + 1e-5).all() and off.max() > 1e-4


def test_alpha_from_labels_brackets_the_true_one(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "top", top_k=32, precision="float32"))
    annotate(annotate_config(folder, tmp_path / "all", top_k=65, precision="float32"))
    annotate(annotate_config(folder, tmp_path / "drawn", labels="sampled", draws=4000, precision="float32"))
    target, draft = load_model(str(folder / "target")), load_model(str(folder / "draft"))
    answers = stored(tmp_path / "top")[1]
    truth = HeldOut(target, answers, Sampling(), "sampled")
    true = truth.means(truth.score(draft))

    def alphas_from(labels):
        scorer = HeldOutLabels(stored(tmp_path / labels)[0], answers, 1.0, False, "sampled")
        return scorer.means(scorer.score(draft))

    top, every, drawn = alphas_from("top"), alphas_from("all"), alphas_from("drawn")
    assert top["greedy"] == true["greedy"] and top["sampled"] >= true["sampled"] - 1e-6
    assert top["argmax_draft"] <= true["argmax_draft"] + 1e-6
    for rule, value in true.items():
        assert every[rule] == pytest.approx(value, abs=1e-5)
    assert drawn["sampled"] == pytest.approx(true["sampled"], abs=0.01)
    assert drawn["argmax_draft"] == pytest.approx(true["argmax_draft"], abs=0.01)


def test_training_from_labels_of_the_whole_vocabulary_is_online_training(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "labels", top_k=65, precision="float32"))
    settings = {"method": "distillspec", "target_fraction": 1.0, "steps": 6, "eval_every": 3}
    offline = train_draft(supervised_config(folder, tmp_path / "a", soft_labels=str(tmp_path / "labels"), **settings))
    online = train_draft(supervised_config(folder, tmp_path / "b", rollouts=str(folder / "answers"), **settings))
    a, b = (load_model(str(tmp_path / name)) for name in "ab")
    for left, right in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-4)
    assert offline.steps == online.steps == 6 and offline.before["greedy"] > 0


@pytest.mark.parametrize("labels", ["top-k", "sampled"])
def test_training_needs_no_weights_of_the_target(folder, tmp_path, labels):
    drawn = {"draws": 32} if labels == "sampled" else {}
    annotate(annotate_config(folder, tmp_path / "labels", labels=labels, **drawn))
    target = tmp_path / "target"
    shutil.copytree(folder / "target", target, ignore=shutil.ignore_patterns("*.safetensors"))
    settings = {"target": str(target), "soft_labels": str(tmp_path / "labels"), "steps": 60, "eval_every": 20}
    summary = train_draft(supervised_config(folder, tmp_path / "out", **settings))
    assert summary.gain["sampled"].low > 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("`sampled` is an upper bound" in card) == (labels == "top-k") == (summary.caveat is not None)
    saved = load_model(str(tmp_path / "out"))
    assert saved.head_weight.shape[0] == 65 and saved.eos_token_ids == {1}


def test_a_label_run_resumes(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "labels"))
    settings = {"soft_labels": str(tmp_path / "labels"), "steps": 8, "eval_every": 4}
    train_draft(supervised_config(folder, tmp_path / "uncut", **settings))
    interrupted = supervised_config(folder, tmp_path / "cut", **settings)

    class Stop(Exception):
        pass

    def stop(step, examples):
        if step == 6:
            raise Stop

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        before_each_step(patch, stop)
        train_draft(interrupted)
    train_draft(interrupted.replace(resume=True))
    assert same_weights(tmp_path / "uncut", tmp_path / "cut")


def test_given_answers_can_be_labelled(folder, tmp_path):
    summary = annotate(annotate_config(folder, tmp_path / "out", rollouts=None, prompts=str(folder / "prompts.jsonl")))
    answers = stored(tmp_path / "out")[1]
    assert summary.answers == 24 and {answer.provenance[0] for answer in answers} == {Provenance.GIVEN}
    assert answers[0].answer_ids[-1] == 1, "the end of the answer is labelled too"


def test_killed_at_any_moment_no_answer_is_lost_or_labelled_twice(folder, tmp_path):
    uncut = tmp_path / "uncut"
    annotate(annotate_config(folder, uncut, labels="sampled", draws=9, seed=5))
    command = [
        *(sys.executable, "-m", "specdistill", "annotate", "--target", str(folder / "target"), "--labels", "sampled"),
        *("--rollouts", str(folder / "answers"), "--output", str(tmp_path / "cut"), "--draws", "9", "--seed", "5"),
    ]
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = len(list((tmp_path / "cut").glob("*.parquet"))) if (tmp_path / "cut").exists() else 0
        while process.poll() is None and len(list((tmp_path / "cut").glob("*.parquet"))) <= before:
            time.sleep(0.005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, capture_output=True).returncode == 0
    for left, right in zip(find_shards(uncut), find_shards(tmp_path / "cut"), strict=True):
        assert left.read_bytes() == right.read_bytes()


def test_other_settings_do_not_go_on_in_the_same_directory(folder, tmp_path):
    annotate(annotate_config(folder, tmp_path / "out"))
    with pytest.raises(OutputError, match="--top-k"):
        annotate(annotate_config(folder, tmp_path / "out", top_k=9))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"divergence": "rkl", "which": "sampled"}, "drawn labels train fkl only"),
        ({"temperature": 0.5}, "temperature 1.0"),
        ({"method": "gkd"}, "--method supervised-kd, distillspec"),
        ({"method": "distillspec", "target_fraction": 0.5}, "stored answers"),
        ({"guidance": 1.0, "negative_prompt": "no"}, "--guidance needs the target"),
        ({"top_p": 0.9}, "unfiltered"),
        ({"rollouts": "x", "method": "distillspec"}, "leave --rollouts away"),
    ],
)
def test_what_labels_cannot_give_is_refused_before_loading(folder, tmp_path, settings, message, monkeypatch):
    which = settings.pop("which", "top-k")
    annotate(annotate_config(folder, tmp_path / "labels", labels=which))
    monkeypatch.setattr("specdistill.models.load.find", lambda *_, **__: pytest.fail("a model was looked for"))
    with pytest.raises((ConfigError, DataError), match=message):
        train_draft(supervised_config(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels"), **settings))


def test_a_directory_without_labels_is_refused(folder, tmp_path):
    with pytest.raises(DataError, match="annotate"):
        train_draft(supervised_config(folder, tmp_path / "out", soft_labels=str(folder / "answers")))


def test_answers_of_another_tokenizer_are_refused(folder, tmp_path):
    other = make_model(layers=1)
    other.tokenizer = make_tokenizer(first_word="other")
    save(other, tmp_path / "other")
    with pytest.raises(DataError, match="another tokenizer"):
        annotate(annotate_config(folder, tmp_path / "out", target=str(tmp_path / "other")))


def test_no_id_comes_twice_where_rows_are_filled_up():
    labels = soft_labels.TokenLabels(torch.tensor([0, 2, 1, 5, 6, 7]), torch.zeros(6), torch.tensor([1, 2, 3]), None)
    rows = soft_labels.padded(labels, labels.log_probs)
    assert rows.token_ids.tolist() == [[0, 1, 2], [2, 1, 0], [5, 6, 7]]
    assert np.isneginf(rows.log_probs[0, 1:].numpy()).all()


def test_a_failed_step_is_reproduced_from_its_labels(folder, tmp_path, monkeypatch):
    annotate(annotate_config(folder, tmp_path / "labels"))
    values = spoil_loss(monkeypatch, call=4)
    with pytest.raises(SpecdistillError, match="at step 4"):
        train_draft(supervised_config(folder, tmp_path / "out", soft_labels=str(tmp_path / "labels")))
    loss, norm = reproduce(tmp_path / "out" / "failed-step-000004")
    assert loss == pytest.approx(values[3], rel=1e-5) and 0 < norm < math.inf
