"""Which text each method and flag trains on, and who wrote it: every step's examples against texts made by hand."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from by_hand import (
    DRAFT,
    EOS,
    FIRST_WORD,
    GIVEN,
    TARGET,
    frozen_run,
    given_answer_of,
    greedy_answer,
    next_logits,
    plain_model,
    prompt_of,
    rows_without_answers,
)
from tiny_runs import generate_config, prompt_rows, write_rows

from specdistill import generate
from specdistill.decoding import generate_plain
from specdistill.distill.answers.shards import read_rollouts
from specdistill.models import load_model

GREEDY_FLAGS = (
    {"temperature": 0.0, "rule": "greedy"},
    {"top_k": 1},
    {"top_p": 1e-6},
    {"min_p": 0.9999},
)
"""Each of these alone leaves a model nothing but its argmax."""
OWN = ({"method": "gkd", "lmbda": 1.0}, {"method": "distillspec", "target_fraction": 0.0})
THE_TARGETS = (
    {"method": "seqkd"},
    {"method": "best-of-n"},
    {"method": "distillspec", "target_fraction": 1.0},
    {"method": "gkd", "lmbda": 0.0},
)


def name_of(value) -> str:
    return "-".join(f"{key}={entry}" for key, entry in value.items())


@pytest.fixture(scope="module")
def unanswered(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "unanswered.jsonl"
    write_rows(path, rows_without_answers())
    return str(path)


@pytest.mark.parametrize(
    "settings", [{"method": "sft"}, {"method": "supervised-kd"}, {"method": "gkd", "lmbda": 0.0}], ids=name_of
)
def test_given_answers_are_trained_on_where_the_prompts_have_them(tiny, tmp_path, settings):
    run = frozen_run(tiny, tmp_path / "out", **settings)
    assert len(run.examples) == 16
    for one in run.examples:
        assert one.prompt_ids == prompt_of(one.prompt_id) and one.answer_ids == given_answer_of(one.prompt_id)
        assert set(one.provenance) == {GIVEN}
    assert not (run.output / "rollouts").exists(), "nobody was asked to write"


@pytest.mark.parametrize("settings", THE_TARGETS, ids=name_of)
def test_the_target_writes_what_its_methods_train_on(tiny, tmp_path, unanswered, settings):
    run = frozen_run(tiny, tmp_path / "out", prompts=unanswered, temperature=0.0, rule="greedy", **settings)
    target, draft = plain_model(tiny / "target"), plain_model(tiny / "draft")
    for one in run.examples:
        assert one.answer_ids == greedy_answer(target, prompt_of(one.prompt_id), 12)
        assert one.answer_ids != greedy_answer(draft, prompt_of(one.prompt_id), 12)
        assert set(one.provenance) == {TARGET}


@pytest.mark.parametrize(
    "settings", [{"method": "seqkd"}, {"method": "distillspec", "target_fraction": 1.0}], ids=name_of
)
def test_the_target_answers_although_answers_were_given(tiny, tmp_path, settings):
    run = frozen_run(tiny, tmp_path / "out", top_k=1, **settings)
    target = plain_model(tiny / "target")
    for one in run.examples:
        assert one.answer_ids == greedy_answer(target, prompt_of(one.prompt_id), 12) != given_answer_of(one.prompt_id)


@pytest.mark.parametrize("flags", GREEDY_FLAGS, ids=name_of)
@pytest.mark.parametrize("settings", OWN, ids=name_of)
def test_the_drafts_own_answers_follow_the_sampling_flags(tiny, tmp_path, settings, flags):
    run = frozen_run(tiny, tmp_path / "out", **settings, **flags)
    draft = plain_model(tiny / "draft")
    for one in run.examples:
        assert one.answer_ids == greedy_answer(draft, prompt_of(one.prompt_id), 12)
        assert set(one.provenance) == {DRAFT}
    assert not (run.output / "rollouts").exists()


@pytest.mark.parametrize("flags", GREEDY_FLAGS, ids=name_of)
def test_the_targets_answers_follow_the_sampling_flags(tiny, tmp_path, flags):
    run = frozen_run(tiny, tmp_path / "out", method="seqkd", **flags)
    target = plain_model(tiny / "target")
    for one in run.examples:
        assert one.answer_ids == greedy_answer(target, prompt_of(one.prompt_id), 12)


@pytest.mark.parametrize("settings", [OWN[0], THE_TARGETS[0]], ids=name_of)
def test_without_a_flag_answers_are_sampled_at_temperature_1(tiny, tmp_path, settings):
    """Share of argmax tokens: that of the writer's own probabilities, far from the 1 of a greedy writer."""
    run = frozen_run(tiny, tmp_path / "out", **settings, batch_size=18, steps=4)
    writer = plain_model(tiny / ("draft" if settings["method"] == "gkd" else "target"))
    chances, hits = [], []
    for one in run.examples:
        for position, token in enumerate(one.answer_ids):
            logits = next_logits(writer, one.prompt_ids + one.answer_ids[:position])
            chances.append(float(logits.softmax(-1).max()))
            hits.append(token == int(logits.argmax()))
    expected = sum(chances) / len(chances)
    # Of several hundred tokens; four standard deviations.
    assert len(hits) > 400 and expected < 0.8
    assert sum(hits) / len(hits) == pytest.approx(expected, abs=4 * (0.25 / len(hits)) ** 0.5)


@pytest.mark.parametrize("settings", [OWN[0], THE_TARGETS[0]], ids=name_of)
def test_answers_follow_the_temperature_and_not_that_of_the_loss(tiny, tmp_path, settings):
    """At 0.001 nearly every token is the argmax; only a near tie is not."""
    run = frozen_run(tiny, tmp_path / "out", temperature=0.001, loss_temperature=1.0, **settings)
    writer = plain_model(tiny / ("draft" if settings["method"] == "gkd" else "target"))
    hits = [
        token == int(next_logits(writer, one.prompt_ids + one.answer_ids[:position]).argmax())
        for one in run.examples
        for position, token in enumerate(one.answer_ids)
    ]
    assert sum(hits) / len(hits) > 0.95


def test_lmbda_is_the_share_of_steps_on_the_drafts_own_answers(tiny, tmp_path):
    shares = {}
    for lmbda in (0.15, 0.85):
        run = frozen_run(
            tiny, tmp_path / str(lmbda), method="gkd", lmbda=lmbda, steps=40, batch_size=1, max_new_tokens=3
        )
        assert all(writers in ({GIVEN}, {DRAFT}) for writers in run.writers)
        shares[lmbda] = sum(writers == {DRAFT} for writers in run.writers) / 40
    # Each within three standard deviations (0.06) of its lambda.
    assert shares[0.15] < 0.33 and shares[0.85] > 0.67


def test_the_seed_decides_which_steps_of_gkd_are_the_drafts_own(tiny, tmp_path):
    def coins(seed):
        run = frozen_run(tiny, tmp_path / str(seed), method="gkd", seed=seed, steps=12, batch_size=1, max_new_tokens=2)
        return [writers == {DRAFT} for writers in run.writers]

    assert coins(0) != coins(1)


def test_gkd_mixes_half_and_half_by_default(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="gkd", steps=40, batch_size=1, max_new_tokens=3)
    assert 0.26 < sum(writers == {DRAFT} for writers in run.writers) / 40 < 0.74


@pytest.mark.parametrize(("fraction", "steps", "first"), [(0.25, 4, 1), (0.75, 4, 3), (None, 5, 5)])
def test_distillspec_trains_on_the_targets_answers_first(tiny, tmp_path, fraction, steps, first):
    run = frozen_run(tiny, tmp_path / "out", method="distillspec", target_fraction=fraction, steps=steps)
    assert run.writers == [{TARGET}] * first + [{DRAFT}] * (steps - first)


def test_a_reward_brings_distillspec_to_the_drafts_own_answers(tiny, tmp_path, monkeypatch):
    (tmp_path / "rewards_of_texts.py").write_text("def length(prompt, text):\n    return float(len(text))\n")
    monkeypatch.chdir(tmp_path)
    run = frozen_run(tiny, tmp_path / "out", method="distillspec", reward="rewards_of_texts:length", steps=5)
    assert run.writers == [{TARGET}] * 3 + [{DRAFT}] * 2


def test_rollouts_per_prompt_is_how_often_the_target_answers(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="seqkd", rollouts_per_prompt=3, batch_size=54, steps=1)
    counts = Counter(one.prompt_id for one in run.examples)
    assert set(counts.values()) == {3} and len(counts) == 18
    assert len({one.answer_ids for one in run.examples}) > 40, "sampled answers differ"


@pytest.mark.parametrize("settings", [*THE_TARGETS[:1], *THE_TARGETS[2:]], ids=name_of)
def test_rollouts_of_a_directory_are_trained_on_in_place_of_others(tiny, tmp_path, settings):
    """In place of new ones, and for gkd in place of given ones."""
    generate(generate_config(tiny, tmp_path / "answers", max_new_tokens=5, seed=77, rollouts_per_prompt=1))
    stored = {(row["prompt_id"], tuple(row["answer_ids"])) for row in read_rollouts(tmp_path / "answers")}
    run = frozen_run(tiny, tmp_path / "out", rollouts=str(tmp_path / "answers"), **settings)
    assert {(one.prompt_id, one.answer_ids) for one in run.examples} <= stored
    assert not (run.output / "rollouts").exists()


def test_best_of_n_trains_on_the_best_by_the_scorer(tiny, tmp_path, monkeypatch):
    """The score is the sum of the words' numbers; the best of the four that the target wrote is found again by hand."""
    (tmp_path / "scorers_by_hand.py").write_text(
        "def total(prompt, text):\n    return sum(int(word[1:]) for word in text.split() if word[0] == 'w')\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = {"method": "best-of-n", "rollouts_per_prompt": 4, "batch_size": 18, "steps": 1}
    run = frozen_run(tiny, tmp_path / "out", scorer="scorers_by_hand:total", **settings)

    def total(ids):
        return sum(token - FIRST_WORD for token in ids if token >= FIRST_WORD)

    best: dict[str, int] = {}
    for row in read_rollouts(run.output / "rollouts"):
        best[row["prompt_id"]] = max(best.get(row["prompt_id"], 0), total(row["answer_ids"]))
    assert len(run.examples) == 18
    assert {one.prompt_id: total(one.answer_ids) for one in run.examples} == best


def test_max_new_tokens_cuts_written_and_given_answers(tiny, tmp_path):
    given = frozen_run(tiny, tmp_path / "given", method="sft", max_new_tokens=2)
    assert all(one.answer_ids == given_answer_of(one.prompt_id)[:2] for one in given.examples)
    for name, settings in (("own", OWN[0]), ("target", THE_TARGETS[0])):
        lengths = [
            len(one.answer_ids) for one in frozen_run(tiny, tmp_path / name, max_new_tokens=5, **settings).examples
        ]
        assert max(lengths) == 5


@pytest.mark.parametrize("method", ["sft", "supervised-kd"])
def test_text_is_trained_on_in_blocks_in_place_of_answers(tiny, tmp_path, method):
    (tmp_path / "text.txt").write_text("w1 w2 w3\n\nw4 w5\n")
    run = frozen_run(tiny, tmp_path / "out", method=method, text=str(tmp_path / "text.txt"), text_block=3, steps=1)
    pairs = {(one.prompt_ids, one.answer_ids) for one in run.examples}
    # The stream w1 w2 w3 <end> w4 w5 <end>: each block predicts three tokens after the one before it.
    assert pairs == {((6,), (7, 8, EOS)), ((EOS,), (9, 10, EOS))}


def test_the_batch_size_is_the_number_of_answers_of_a_step(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="sft", batch_size=5)
    assert [len(step) for step in run.steps] == [5, 5]


@pytest.mark.parametrize(
    ("settings", "all_answers"),
    [(OWN[0], 18), (THE_TARGETS[0], 36), ({"method": "skd"}, 18)],
    ids=["gkd", "seqkd", "skd"],
)
def test_the_seed_decides_what_is_written(tiny, tmp_path, settings, all_answers):
    """A step takes all answers, so that their order plays no part."""
    texts = {}
    for name, seed in (("one", 1), ("again", 1), ("other", 2)):
        run = frozen_run(tiny, tmp_path / name, seed=seed, batch_size=all_answers, **settings)
        texts[name] = [{(one.prompt_id, one.answer_ids) for one in step} for step in run.steps]
    assert texts["one"] == texts["again"]
    assert len(texts["one"][0] & texts["other"][0]) < all_answers / 3
    # The target's answers come again; the draft's own are new in each step.
    assert (texts["one"][0] == texts["one"][1]) == (settings["method"] == "seqkd")


def test_the_seed_decides_the_order_of_given_answers(tiny, tmp_path):
    orders = [
        [one.prompt_id for one in frozen_run(tiny, tmp_path / name, method="sft", seed=seed).examples]
        for name, seed in (("one", 1), ("again", 1), ("other", 2))
    ]
    assert orders[0] == orders[1] != orders[2]
    assert len(set(orders[0])) == 16, "an epoch repeats nothing"


def test_another_engine_writes_the_drafts_own_answers_with_the_pushed_weights(tiny, tmp_path):
    class Engine:
        def __init__(self, model):
            self.model, self.pushed = model, []

        def push(self, weights):
            self.pushed.append(len(dict(weights)))

        def write(self, prompts, sampling, max_new_tokens, seeds):
            # A text of its own: one token.
            return generate_plain(self.model, prompts, sampling=sampling, max_new_tokens=1, seeds=seeds)

    made = []

    def make_engine(model, *, max_length, memory):
        made.append(Engine(model))
        return made[-1]

    settings = {"method": "gkd", "lmbda": 1.0, "rollout_engine": "vllm", "push_every": 2, "steps": 4}
    run = frozen_run(tiny, tmp_path / "out", make_engine=make_engine, **settings)
    assert {len(one.answer_ids) for one in run.examples} == {1}
    assert len(made[0].pushed) == 2


# ---- prompts


def test_held_out_prompts_are_chosen_by_their_text_and_never_trained_on(tiny, tmp_path):
    """Order, ids and seed play no part; the number is that of the flag."""
    words = {row["id"]: row["prompt"] for row in prompt_rows()}
    renamed = [row | {"id": f"x{row['id']}"} for row in reversed(prompt_rows())]
    write_rows(tmp_path / "renamed.jsonl", renamed)
    held_out = []
    for name, settings in (("one", {}), ("other", {"prompts": str(tmp_path / "renamed.jsonl"), "seed": 5})):
        run = frozen_run(tiny, tmp_path / name, method="sft", heldout_prompts=4, batch_size=20, **settings)
        trained = {words[one.prompt_id.removeprefix("x")] for one in run.examples}
        judged = {words[row["prompt_id"].removeprefix("x")] for row in read_rollouts(run.output / "heldout")}
        assert len(judged) == 4 and len(trained) == 20 and not judged & trained
        held_out.append(judged)
    assert held_out[0] == held_out[1]
    assert held_out[0] != {row["prompt"] for row in prompt_rows()[:4]}


def test_arguments_of_the_chat_template_reach_every_prompt(tiny, tmp_path):
    tokenizer_files = load_model(str(tiny / "target"))
    tokenizer_files.tokenizer.chat_template = "{% if loud %}w59 {% endif %}" + str(
        tokenizer_files.tokenizer.chat_template
    )
    tokenizer_files.model.save_pretrained(tmp_path / "target")
    tokenizer_files.tokenizer.save_pretrained(tmp_path / "target")
    for name, arguments, begin in (("quiet", None, ()), ("loud", json.dumps({"loud": True}), (FIRST_WORD + 59,))):
        settings = {"target": str(tmp_path / "target"), "chat_template_kwargs": arguments}
        run = frozen_run(tiny, tmp_path / name, method="sft", **settings)
        assert all(one.prompt_ids == begin + prompt_of(one.prompt_id) for one in run.examples)
        judged = read_rollouts(run.output / "heldout")
        assert all(tuple(row["prompt_ids"]) == begin + prompt_of(row["prompt_id"]) for row in judged)


def test_raw_prompts_skip_the_chat_template(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="sft", raw_prompts=True)
    assert all(one.prompt_ids == prompt_of(one.prompt_id)[1:-1] for one in run.examples)
