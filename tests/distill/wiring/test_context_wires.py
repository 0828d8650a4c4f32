"""Context distillation by its effect: which ids each model reads, and whose distribution enters the loss.

The words of the system prompt, the hint and the examples occur in no prompt, so that ids show who has seen them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_vllm import FakeVllm
from tiny_models import make_model, save
from tiny_runs import (
    annotate_config,
    any_config,
    example,
    generate_config,
    history,
    prompt_rows,
    skd_source,
    spoil_loss,
    train,
    write_rows,
)

from specdistill import annotate, generate, load_model
from specdistill.data import Prompt
from specdistill.data.soft_labels import LabelStore
from specdistill.data.target_context import TargetContext, TargetView
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.answers import scorers, shards
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.reproduce import reproduce
from specdistill.distill.training.loss import DistillationLoss
from specdistill.errors import ConfigError, DataError, OutputError, SpecdistillError
from specdistill.settings.target_context import ContextSettings
from specdistill_kernels.fused_divergence.reference import divergence

USER, BOT = 3, 4
SYSTEM = "w57 w58 w57"
SYSTEM_IDS = (USER, 62, 63, 62)
"""The system turn in the tiny template, which begins every turn alike."""


def words(text: str) -> tuple[int, ...]:
    return tuple(int(word[1:]) + 5 for word in text.split())


ROWS = {row["id"]: row for row in prompt_rows()}
SHORT = {name: (USER, *words(row["prompt"]), BOT) for name, row in ROWS.items()}
LONG = {name: SYSTEM_IDS + ids for name, ids in SHORT.items()}


@pytest.fixture
def system(tmp_path):
    (tmp_path / "system.txt").write_text(f"{SYSTEM}\n")
    return str(tmp_path / "system.txt")


@pytest.fixture(scope="module")
def models(tiny):
    return {name: load_model(str(tiny / name), name) for name in ("target", "draft")}


def log_probs(model, prompt, answer):
    """[answer, vocab]: log-probabilities of a plain forward pass of transformers behind a prompt."""
    with torch.no_grad():
        logits = model.model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, :, : model.vocab_size]
    return logits[len(prompt) - 1 : len(prompt) + len(answer) - 1].log_softmax(-1)


class Watched:
    """Everything that a run's models were given: prompts to write to, and each call of the loss."""

    def __init__(self, monkeypatch):
        self.asked, self.losses = [], []
        plain, forward = shards.generate_plain, DistillationLoss.forward

        def writing(model, prompts, **named):
            self.asked += [tuple(ids) for ids in prompts]
            return plain(model, prompts, **named)

        def losing(module, batch, target_hidden, totals, *others, **named):
            output = forward(module, batch, target_hidden, totals, *others, **named)
            soft = others[1] if len(others) > 1 else named.get("soft_labels")
            self.losses.append((batch, target_hidden, soft, float(output.loss.detach()), module))
            return output

        monkeypatch.setattr(shards, "generate_plain", writing)
        monkeypatch.setattr(DistillationLoss, "forward", losing)

    def rows(self):
        """(prompt's ids, answer's ids, the target's hidden states, its soft labels) of each example of each step."""
        for batch, hidden, soft, _, _ in self.losses:
            lengths = batch.response_mask.sum(1).tolist()
            states = [None] * len(lengths) if hidden is None else list(hidden.split(lengths))
            labels = (
                [None] * len(lengths)
                if soft is None
                else list(zip(*(part.split(lengths) for part in soft), strict=True))
            )
            for ids, mask, real, state, label in zip(
                batch.input_ids, batch.response_mask, batch.attention_mask.bool(), states, labels, strict=True
            ):
                yield tuple(ids[real & ~mask].tolist()), tuple(ids[mask].tolist()), state, label


@pytest.fixture
def watched(monkeypatch):
    return Watched(monkeypatch)


# ---- the prompt


def test_the_target_sees_system_prompt_examples_and_hint_in_their_places():
    context = TargetContext(
        "Be brief.",
        ({"role": "user", "content": "1+1"}, {"role": "assistant", "content": "2"}),
        "It is {answer}, {really}.",
    )
    turns = ({"role": "system", "content": "Own."}, {"role": "user", "content": "Q"}, {"role": "tool", "content": "T"})
    seen = context.prompt(Prompt("p", turns, answer=" 42\n", tools=({"name": "f"},), chat_template_kwargs={"a": 1}))
    assert [(turn["role"], turn["content"]) for turn in seen.messages] == [
        ("system", "Be brief.\n\nOwn."),
        ("user", "1+1"),
        ("assistant", "2"),
        ("user", "Q\n\nIt is 42, {really}."),
        ("tool", "T"),
    ]
    assert seen.tools == ({"name": "f"},) and seen.chat_template_kwargs == {"a": 1}
    assert turns[1] == {"role": "user", "content": "Q"}, "the prompt itself stays as it is"
    twice = Prompt("p", tuple({"role": role, "content": role[0]} for role in ("user", "assistant", "user")), answer="1")
    assert [turn["content"] for turn in TargetContext(hint="{answer}!").prompt(twice).messages] == ["u", "a", "u\n\n1!"]
    only_system = TargetContext("Be brief.").prompt(Prompt("p", ({"role": "user", "content": "Q"},)))
    assert only_system.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"})


def test_ids_by_hand(tmp_path, system, models):
    write_rows(
        tmp_path / "examples.jsonl", [{"prompt": "w59 w55", "answer": "w54"}, {"prompt": "w53", "answer": "w52"}]
    )
    settings = ContextSettings(
        target_system=system, target_examples=str(tmp_path / "examples.jsonl"), target_hint="w51 {answer} w51"
    )
    prompt = Prompt("p", ({"role": "user", "content": "w1 w2"},), answer="w3 w4")
    tokenizer = models["target"].tokenizer
    view = TargetContext.read(settings).view([prompt], [[USER, 6, 7, BOT]], tokenizer, 100, 65)
    turns = [*SYSTEM_IDS, USER, 64, 60, USER, 59, USER, 58, USER, 57, USER, 6, 7, 56, 8, 9, 56, BOT]
    assert view.ids_of("p", [USER, 6, 7, BOT]) == turns
    assert view.ids_of("another", [USER, 9, BOT]) == [USER, 9, BOT]


def test_a_prompt_without_template_gets_the_same_texts(system, models):
    tokenizer = models["target"].tokenizer
    raw = Prompt("p", ({"role": "user", "content": "w1 w2"},), raw=True)
    view = TargetContext.read(ContextSettings(target_system=system)).view([raw], [[6, 7]], tokenizer, 100, 65)
    assert view.ids["p"] == (*words(SYSTEM), 6, 7)


# ---- training, in memory


METHODS = {
    "supervised-kd": {},
    "distillspec": {"target_fraction": 0.5},
    "gkd": {"lmbda": 0.5, "divergence": "fkl"},
    "skd": {"skd_top_k": 8},
    "best-of-n": {"divergence": "fkl"},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_compares_the_target_behind_its_prompt_with_the_draft_behind_its_own(
    tiny, tmp_path, models, system, watched, method
):
    train(tiny, tmp_path / "out", method=method, target_system=system, steps=8, micro_batch_size=3, **METHODS[method])
    rows = list(watched.rows())
    assert len(rows) == 8 * 8
    for prompt, answer, states, _ in rows:
        (name,) = [name for name, ids in SHORT.items() if ids == prompt]
        wanted = log_probs(models["target"], LONG[name], answer)
        got = models["target"].logits(states).log_softmax(-1)
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
        plain = log_probs(models["target"], SHORT[name], answer)
        assert (wanted - plain).abs().max() > 0.1, "or the case would show nothing"
    # The first step's value, from plain passes of both models.
    first = rows[:3]
    total = sum(len(answer) for _, answer, _, _ in rows[:8])
    by_hand = 0.0
    for prompt, answer, _, _ in first:
        (name,) = [name for name, ids in SHORT.items() if ids == prompt]
        both = log_probs(models["draft"], prompt, answer), log_probs(models["target"], LONG[name], answer)
        by_hand += float(divergence(*both, "fkl").sum()) / total
    assert watched.losses[0][3] == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("method", ["seqkd", "distillspec", "best-of-n"])
def test_the_target_answers_behind_its_prompt_and_the_draft_reads_the_answers_behind_its_own(
    tiny, tmp_path, models, system, watched, method
):
    alone = {"target_fraction": 1.0} if method == "distillspec" else {}
    train(tiny, tmp_path / "out", method=method, target_system=system, temperature=0.0, **alone)
    assert set(watched.asked) == set(LONG.values()), "training and held-out prompts, all of them longer"
    for directory in ("rollouts", "heldout"):
        for row in read_rollouts(tmp_path / "out" / directory):
            assert tuple(row["prompt_ids"]) == SHORT[row["prompt_id"]]
            assert tuple(row["target_prompt_ids"]) == LONG[row["prompt_id"]]
            greedy = log_probs(models["target"], LONG[row["prompt_id"]], row["answer_ids"]).argmax(-1)
            assert greedy.tolist() == row["answer_ids"]
    rollouts = read_rollouts(tmp_path / "out" / "rollouts")
    written = {(SHORT[row["prompt_id"]], tuple(row["answer_ids"])) for row in rollouts}
    assert {(prompt, answer) for prompt, answer, _, _ in watched.rows()} == written
    kept = json.loads((tmp_path / "out" / "target_context.json").read_text())
    assert kept == {"system": SYSTEM, "examples": [], "hint": None}
    assert "target_context.json" in (tmp_path / "out" / "README.md").read_text()


def test_the_draft_answers_behind_its_own_prompt(tiny, tmp_path, models, system, watched):
    train(tiny, tmp_path / "out", method="gkd", lmbda=1.0, target_system=system, temperature=0.0, steps=2)
    rows = list(watched.rows())[:8]
    for prompt, answer, _, _ in rows:
        assert prompt in SHORT.values()
        assert log_probs(models["draft"], prompt, answer).argmax(-1).tolist() == list(answer), "before the first step"


def test_heldout_alpha_is_measured_against_the_target_that_sees_more(tiny, tmp_path, models, system):
    train(tiny, tmp_path / "out", method="seqkd", target_system=system, steps=1)
    accepted = [
        torch.minimum(
            log_probs(models["target"], LONG[row["prompt_id"]], row["answer_ids"]).exp(),
            log_probs(models["draft"], SHORT[row["prompt_id"]], row["answer_ids"]).exp(),
        ).sum(-1)
        for row in read_rollouts(tmp_path / "out" / "heldout")
    ]
    by_hand = float(torch.cat(accepted).mean())
    assert history(tmp_path / "out")[0]["heldout_alpha_sampled"] == pytest.approx(by_hand, abs=1e-4)


def test_the_watched_loss_is_measured_against_the_target_that_sees_more(tiny, tmp_path, models, system):
    train(tiny, tmp_path / "out", method="supervised-kd", watch="loss", target_system=system, steps=1)
    values = []
    for row in read_rollouts(tmp_path / "out" / "heldout"):
        name = row["prompt_id"]
        answer = (*words(ROWS[name]["answer"]), 1)
        both = log_probs(models["draft"], SHORT[name], answer), log_probs(models["target"], LONG[name], answer)
        values.append(divergence(*both, "fkl"))
    assert history(tmp_path / "out")[0]["heldout_loss"] == pytest.approx(float(torch.cat(values).mean()), rel=1e-3)


def test_best_of_n_takes_the_likelihood_behind_the_targets_prompt(models):
    """The two prompts disagree on which of two answers is the likelier one; the target's counts."""
    target, candidates = models["target"], [(6, 7), (20, 21), (33, 9), (40, 8), (12, 50)]

    def mean(prompt, answer):
        logs = log_probs(target, prompt, answer)
        return float(logs.gather(1, torch.tensor(answer)[:, None]).mean())

    long, short = (max(candidates, key=lambda answer: mean(ids["p3"], answer)) for ids in (LONG, SHORT))
    assert long != short, "or the case would show nothing"
    prompt = Prompt("p3", ({"role": "user", "content": ROWS["p3"]["prompt"]},))
    rows = [example(SHORT["p3"], answer, name="p3") for answer in candidates]
    seen = TargetView({"p3": LONG["p3"]}).examples(rows)
    assert [row.answer_ids for row in scorers.best_of_n(seen, [prompt], target, None)] == [long]
    assert [row.answer_ids for row in scorers.best_of_n(rows, [prompt], target, None)] == [short]


def test_a_run_of_best_of_n_keeps_what_is_likeliest_behind_the_targets_prompt(tiny, tmp_path, models, system, watched):
    train(tiny, tmp_path / "out", method="best-of-n", target_system=system, rollouts_per_prompt=4, steps=9, patience=0)
    likeliest: dict[str, list[tuple[float, float, tuple[int, ...]]]] = {}
    for row in read_rollouts(tmp_path / "out" / "rollouts"):
        name, answer = row["prompt_id"], tuple(row["answer_ids"])
        at = torch.tensor(answer)[:, None]
        means = [float(log_probs(models["target"], ids[name], answer).gather(1, at).mean()) for ids in (LONG, SHORT)]
        likeliest.setdefault(name, []).append((*means, answer))
    long, short = (
        {(SHORT[name], max(copies, key=lambda copy: copy[place])[2]) for name, copies in likeliest.items()}
        for place in (0, 1)
    )
    assert {(prompt, answer) for prompt, answer, _, _ in watched.rows()} == long != short


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_skd_lets_each_model_read_its_own_prompt(models, temperature):
    """All of the target's ids allowed: the draft's own answer. Only its likeliest one: the target's own."""
    target, draft = models["target"], models["draft"]
    names = ["p1", "p7", "p20"]
    prompts = [Prompt(name, ({"role": "user", "content": ROWS[name]["prompt"]},)) for name in names]
    encoded, view = [list(SHORT[name]) for name in names], TargetView({name: LONG[name] for name in names})
    sampling = Sampling(temperature=temperature)
    for top_k, model, seen in ((65, draft, SHORT), (1, target, LONG)):
        if temperature and model is target:
            continue
        source = skd_source(target, draft, prompts, encoded, sampling, top_k=top_k, batch_size=3, view=view)
        for row in source.next_batch(1):
            assert row.prompt_ids == SHORT[row.prompt_id]
            states = target.logits(row.target_hidden).log_softmax(-1)
            wanted = log_probs(target, LONG[row.prompt_id], row.answer_ids)
            torch.testing.assert_close(states, wanted, rtol=1e-3, atol=1e-3)
            if not temperature:
                (own,) = generate_plain(
                    model, [list(seen[row.prompt_id])], sampling=sampling, max_new_tokens=20, seeds=[0]
                )
                assert tuple(own.token_ids) == row.answer_ids


def test_the_hint_holds_the_prompts_own_answer(tiny, tmp_path, watched):
    train(tiny, tmp_path / "out", method="seqkd", target_hint="w57 {answer}", steps=1)
    wanted = {(USER, *words(row["prompt"]), 62, *words(row["answer"]), BOT) for row in ROWS.values()}
    assert set(watched.asked) == wanted


def test_a_failed_step_is_reproduced_with_the_targets_prompt(tiny, tmp_path, monkeypatch, system):
    values = spoil_loss(monkeypatch, 2)
    with pytest.raises(SpecdistillError, match="reproduces the step"):
        train(tiny, tmp_path / "out", method="supervised-kd", target_system=system, steps=4)
    loss, _ = reproduce(tmp_path / "out" / "failed-step-000002")
    assert loss == pytest.approx(values[1], rel=1e-5)


def test_a_changed_system_prompt_is_no_run_to_resume(tiny, tmp_path, system, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DistillationLoss, "forward", interrupt)
        train(tiny, tmp_path / "out", method="supervised-kd", target_system=system)
    (tmp_path / "system.txt").write_text("w58")
    with pytest.raises(OutputError, match="has changed since the run"):
        train(tiny, tmp_path / "out", method="supervised-kd", target_system=system, resume=True)


def interrupt(*arguments, **named):
    raise KeyboardInterrupt


# ---- answers and labels on disk, and a server


def test_answers_and_labels_are_made_behind_the_longer_prompt_and_used_with_the_same_flags_only(
    tiny, tmp_path, models, system, watched
):
    answers, labels = tmp_path / "answers", tmp_path / "labels"
    generate(generate_config(tiny, answers, rollouts_per_prompt=2, target_system=system))
    assert set(watched.asked) == set(LONG.values())
    settings = {"rollouts": str(answers), "prompts": str(tiny / "prompts.jsonl"), "top_k": 65, "precision": "float32"}
    annotate(annotate_config(tiny, labels, target_system=system, **settings))
    store = LabelStore(sorted(labels.glob("*.parquet")))
    rows = store.rows()
    assert len(rows) == 48
    for number, row in enumerate(rows):
        name = row["prompt_id"]
        assert (tuple(row["prompt_ids"]), tuple(row["target_prompt_ids"])) == (SHORT[name], LONG[name])
        one = example(SHORT[name], row["answer_ids"], name=name)
        store.place(one, number)
        stored = store.token_labels(one)
        wanted = log_probs(models["target"], LONG[name], row["answer_ids"])
        got = torch.full(wanted.shape, torch.nan).scatter(1, stored.ids.view(-1, 65), stored.log_probs.view(-1, 65))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)
    watched.losses.clear()
    stored = {"soft_labels": str(labels), "method": "supervised-kd", "steps": 4}
    train(tiny, tmp_path / "from-labels", target_system=system, **stored)
    for prompt, answer, _, (ids, logs) in watched.rows():
        (name,) = [name for name, own in SHORT.items() if own == prompt]
        wanted = log_probs(models["target"], LONG[name], answer)
        torch.testing.assert_close(
            torch.full(wanted.shape, torch.nan).scatter(1, ids, logs), wanted, rtol=1e-3, atol=1e-3
        )
    (tmp_path / "other.txt").write_text("w58")
    for use in (stored, {"rollouts": str(answers), "method": "seqkd"}):
        for flags in ({}, {"target_system": str(tmp_path / "other.txt")}, {"target_hint": "w57 {answer}"}):
            with pytest.raises(DataError, match=r"was made by a target that saw what .*target_context.json holds"):
                train(tiny, tmp_path / "refused", **use, **flags)
    with pytest.raises(DataError, match="was made by a target that saw what"):
        annotate(annotate_config(tiny, tmp_path / "refused", rollouts=str(answers)))
    assert not (tmp_path / "refused").exists()


def test_plain_answers_are_labelled_by_a_target_that_sees_more_but_not_trained_on_as_its_own(tiny, tmp_path, system):
    answers = tmp_path / "answers"
    generate(generate_config(tiny, answers, rollouts_per_prompt=1))
    settings = {"rollouts": str(answers), "prompts": str(tiny / "prompts.jsonl"), "target_system": system}
    annotate(annotate_config(tiny, tmp_path / "labels", **settings))
    for row in read_rollouts(tmp_path / "labels"):
        assert tuple(row["target_prompt_ids"]) == LONG[row["prompt_id"]]
    with pytest.raises(DataError, match="by a target that saw no more than the draft"):
        train(tiny, tmp_path / "refused", rollouts=str(answers), method="seqkd", target_system=system)
    # The prompts that were answered must be named, or nothing could be added to them.
    with pytest.raises(DataError, match="is to none of --prompts"):
        annotate(annotate_config(tiny, tmp_path / "x", **settings | {"prompts": "builtin:train"}))


def test_generate_goes_on_with_the_same_context_only(tiny, tmp_path, system):
    config = generate_config(tiny, tmp_path / "out", rollouts_per_prompt=1, target_system=system)
    generate(config)
    shutil.copy(system, tmp_path / "copy.txt")
    generate(config.replace(rollouts_per_prompt=2, target_system=str(tmp_path / "copy.txt")))
    assert len(read_rollouts(tmp_path / "out")) == 48
    (tmp_path / "system.txt").write_text("w58")
    for other in (config, config.replace(target_system=None)):
        with pytest.raises(DataError, match=r"--output .* was made by a target that saw what"):
            generate(other)


def test_annotate_goes_on_with_the_same_context_only(tiny, tmp_path, system):
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers"
    write_rows(prompts, list(ROWS.values()))
    generate(generate_config(tiny, answers, rollouts_per_prompt=1))
    given = {"rollouts": str(answers), "prompts": str(prompts)}
    config = annotate_config(tiny, tmp_path / "labels", target_system=system, **given)
    before = annotate(config)
    assert annotate(config) == before
    (tmp_path / "system.txt").write_text("w58")
    with pytest.raises(DataError, match=r"--output .* was made by a target that saw what"):
        annotate(config)
    hinted = annotate_config(tiny, tmp_path / "hinted", target_hint="w57 {answer}", **given)
    annotate(hinted)
    write_rows(prompts, [row | ({"answer": "w50"} if name == "p5" else {}) for name, row in ROWS.items()])
    with pytest.raises(OutputError, match="labels other answers than those that are to be labelled now"):
        annotate(hinted)


def test_an_answer_that_changed_under_a_hint_is_noticed(tiny, tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    write_rows(prompts, list(ROWS.values()))
    config = generate_config(tiny, tmp_path / "out", prompts=str(prompts), target_hint="w57 {answer}")
    generate(config)
    write_rows(prompts, [row | ({"answer": "w50"} if name == "p5" else {}) for name, row in ROWS.items()])
    with pytest.raises(DataError, match="the answer to prompt 'p5' was made by a target that saw another prompt"):
        generate(config)


def test_a_served_target_writes_and_labels_behind_its_own_prompt(tiny, tmp_path, models, system, watched):
    settings = {"method": "distillspec", "target_fraction": 0.5, "server_top_k": 65, "temperature": 1.0, "steps": 4}
    with FakeVllm(models["target"], max_logprobs=65) as served:
        train(tiny, tmp_path / "out", target_server=served.url, target_system=system, **settings)
    rows = list(watched.rows())
    assert len(rows) == 32
    for prompt, answer, _, (ids, logs) in rows:
        (name,) = [name for name, own in SHORT.items() if own == prompt]
        wanted = log_probs(models["target"], LONG[name], answer)
        torch.testing.assert_close(
            torch.full(wanted.shape, torch.nan).scatter(1, ids, logs), wanted, rtol=1e-3, atol=1e-3
        )
    for row in read_rollouts(tmp_path / "out" / "rollouts"):
        (own,) = generate_plain(
            models["target"],
            [list(LONG[row["prompt_id"]])],
            sampling=Sampling(),
            max_new_tokens=12,
            seeds=[row["seed"]],
        )
        assert own.token_ids == row["answer_ids"]


# ---- what is refused


def in_memory(tiny, tmp_path, **settings):
    return train(tiny, tmp_path / "out", method="seqkd", **settings)


def test_files_are_checked_before_models(tiny, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    write_rows(tmp_path / "unanswered.jsonl", [{"prompt": "w1"}])
    turns = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2"}]
    write_rows(tmp_path / "system.jsonl", [{"messages": turns, "answer": "w3"}])
    write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"w{i}"} for i in range(9)])
    for flags, text in (
        ({"target_system": "nowhere.txt"}, "--target-system nowhere.txt can't be read as text"),
        ({"target_system": str(tmp_path / "empty.txt")}, "is empty; write the system prompt into it"),
        ({"target_examples": "nowhere.jsonl"}, "--target-examples: .*nowhere.jsonl does not exist"),
        (
            {"target_examples": str(tmp_path / "unanswered.jsonl")},
            'line 1: .*--target-examples needs the field "answer"',
        ),
        ({"target_examples": str(tmp_path / "system.jsonl")}, "line 1: .*system turn; put .*into --target-system"),
        (
            {"target_hint": "it is {answer}", "prompts": str(tmp_path / "prompts.jsonl")},
            'line 1: has no field "answer"',
        ),
    ):
        with pytest.raises(DataError, match=text):
            in_memory(tiny, tmp_path, **flags)
        assert not (tmp_path / "out").exists()


def test_the_mark_of_the_byte_order_is_no_part_of_the_system_prompt(tmp_path):
    """Windows' Notepad writes one."""
    (tmp_path / "system.txt").write_bytes(b"\xef\xbb\xbfw1 w2\r\n")
    assert TargetContext.read(ContextSettings(target_system=str(tmp_path / "system.txt"))).system == "w1 w2"


def test_flags_that_contradict_each_other_are_refused():
    for settings, text in (
        ({"target_hint": "the answer"}, r"--target-hint must hold \{answer\}"),
        ({"target_system": "s", "text": "t", "method": "supervised-kd"}, "--text has no prompts"),
        ({"target_system": "s", "method": "sft"}, "--target-system adds to .*goes with .*not with sft"),
        ({"target_system": "s", "method": "online", "online": "log"}, "not with online"),
    ):
        with pytest.raises(ConfigError, match=text):
            any_config(**({"method": "seqkd"} | settings))
    with pytest.raises(ConfigError, match="--text has no prompts"):
        annotate_config(Path("x"), Path("y"), rollouts=None, text="t", target_system="s")


def test_a_template_that_leaves_the_system_turn_out_is_refused(tiny, tmp_path, system):
    model = make_model(layers=2)
    model.tokenizer.chat_template = model.tokenizer.chat_template.replace(
        "<user> {{ m['content'] }} ", "{% if m['role'] == 'user' %}<user> {{ m['content'] }} {% endif %}"
    )
    save(model, tmp_path / "target")
    with pytest.raises(
        DataError, match=r"the target would see no more than the draft: the chat template of .* leaves out"
    ):
        in_memory(tiny, tmp_path, target=str(tmp_path / "target"), target_system=system)
    in_memory(tiny, tmp_path, target=str(tmp_path / "target"), target_hint="w57 {answer}", steps=1)


def test_a_context_without_room_for_the_answer_is_refused(tiny, tmp_path):
    (tmp_path / "long.txt").write_text("w57 " * 250)
    with pytest.raises(
        DataError, match=r"as the target sees it, but only 244 fit its context .*shorten what --target-"
    ):
        in_memory(tiny, tmp_path, target_system=str(tmp_path / "long.txt"))


# ---- a target of the draft's own weights


@pytest.fixture
def twins(tiny, tmp_path):
    """The draft, and a copy of it in another folder."""
    shutil.copytree(tiny / "draft", tmp_path / "copy")
    return {"draft": str(tiny / "draft"), "target": str(tmp_path / "copy")}


NOTHING = r"teach it nothing, loss and gradient would be 0; let the target see more .*--scorer\), or add a --reward"


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gkd"},
        {"method": "distillspec"},
        {"method": "supervised-kd"},
        {"method": "skd"},
        {"method": "seqkd"},
        # Cross entropy at the temperature of the samples is 0 on average, whatever the temperature.
        {"method": "seqkd", "temperature": 0.5},
        {"method": "best-of-n", "divergence": "fkl"},
        # Cross entropy is never mixed in on what the draft itself writes.
        {"method": "gkd", "lmbda": 1.0, "ce_weight": 0.5},
        {"method": "distillspec", "target_fraction": 0.0, "ce_weight": 0.5},
        {"method": "distillspec", "ce_weight": 0.5},
    ],
)
def test_a_target_of_the_drafts_own_weights_is_refused(tiny, tmp_path, twins, settings, monkeypatch):
    with pytest.raises(ConfigError, match=f"have the same weights: .*{NOTHING}"):
        train(tiny, tmp_path / "out", **twins, **settings)
    monkeypatch.setattr("specdistill.distill.train_draft.load_pair", None)
    with pytest.raises(ConfigError, match=f"--target and --draft are both .*{NOTHING}"):
        train(tiny, tmp_path / "out", **twins | {"target": twins["draft"] + "/"}, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "gkd", "target_hint": "w57 {answer}"},
        {"method": "gkd", "guidance": 0.5, "negative_prompt": "w1"},
        {"method": "seqkd", "temperature": 0.5, "loss_temperature": 1.0},
        {"method": "seqkd", "top_p": 0.5},
        {"method": "seqkd", "temperature": 0.0, "rule": "greedy"},
        {"method": "supervised-kd", "ce_weight": 0.5},
        {"method": "distillspec", "ce_weight": 0.5, "top_k": 3},
        {"method": "sft"},
        {"method": "best-of-n"},
    ],
)
def test_it_is_taken_where_it_teaches_something(tiny, tmp_path, twins, settings):
    train(tiny, tmp_path / "out", **twins, **settings, steps=1, eval_every=1)
    assert history(tmp_path / "out")[-1]["grad_norm"] > 1e-3


def test_a_draft_with_one_other_weight_is_no_twin(tiny, tmp_path):
    other = load_model(str(tiny / "draft"), "draft")
    with torch.no_grad():
        list(other.model.parameters())[-1].view(-1)[0] += 1
    save(other, tmp_path / "other")
    train(tiny, tmp_path / "out", target=str(tiny / "draft"), draft=str(tmp_path / "other"), method="gkd", steps=1)


def test_self_distillation_moves_the_draft_toward_itself_with_the_system_prompt(tiny, tmp_path, system, models):
    """One model: without the prompt it learns what it says with it; the loss of the first step is not 0."""
    draft = str(tiny / "draft")
    summary = train(
        tiny,
        tmp_path / "out",
        target=draft,
        draft=draft,
        method="distillspec",
        target_fraction=1.0,
        target_system=system,
        steps=60,
        eval_every=20,
    )
    assert summary.gain["sampled"].low > 0
    trained = load_model(str(tmp_path / "out"), "draft")
    distance = {}
    for name, model in (("before", models["draft"]), ("after", trained)):
        rows = read_rollouts(tmp_path / "out" / "heldout")
        values = [
            divergence(
                log_probs(model, row["prompt_ids"], row["answer_ids"]),
                log_probs(models["draft"], row["target_prompt_ids"], row["answer_ids"]),
                "fkl",
            )
            for row in rows
        ]
        distance[name] = float(torch.cat(values).mean())
    assert distance["after"] < 0.8 * distance["before"]
