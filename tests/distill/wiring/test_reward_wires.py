"""Rewards and held-out numbers beside alpha, by hand: whose answers are judged, from which seeds and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from by_hand import DRAFT, GIVEN, ByHand, answer_logits, close, frozen_run, given_answer_of, kl, prompt_of
from tiny_models import make_model
from tiny_runs import any_config, example, prompt_rows, write_rows

from specdistill.data import Example, Prompt
from specdistill.data.prompts import load_prompts, split_prompts
from specdistill.decoding import Sampling, generate_plain
from specdistill.distill.answers.shards import read_rollouts, rollout_seed, to_example
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.training.own_answers import OwnAnswers
from specdistill.distill.training.rewards import judge_step
from specdistill.errors import ConfigError
from specdistill.models import load_model

NEGATIVE = (3, 62, 4)
GUIDANCE = {"guidance": 0.8, "negative_prompt": "w57"}
NUMBERS = "def numbers(prompt, text):\n    return sum(int(word[1:]) for word in text.split() if word[0] == 'w')\n"


def numbers(text: str) -> float:
    return float(sum(int(word[1:]) for word in text.split() if word[0] == "w"))


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Settings of a reward that tells nearly every text from every other."""
    (tmp_path / "numbers_by_hand.py").write_text(NUMBERS)
    monkeypatch.chdir(tmp_path)
    return {"method": "gkd", "lmbda": 1.0, "reward": "numbers_by_hand:numbers"}


def test_the_held_out_reward_is_of_answers_sampled_as_in_training_from_the_runs_seed(tiny, tmp_path, judged):
    run = frozen_run(tiny, tmp_path / "out", seed=3, temperature=0.7, steps=1, **judged)
    draft = load_model(str(tiny / "draft"), "draft")
    _, heldout = split_prompts(load_prompts(str(tiny / "prompts.jsonl")), 6)
    asked = [list(prompt_of(prompt.id)) for prompt in heldout]
    seeds = [3 * 100_003 + place for place in range(6)]
    written = generate_plain(draft, asked, sampling=Sampling(temperature=0.7), max_new_tokens=12, seeds=seeds)
    expected = [numbers(draft.decode(answer.token_ids)) for answer in written]
    assert [entry["heldout_reward"] for entry in run.history] == [close(sum(expected) / 6)] * 2


@pytest.mark.parametrize("size", [1, 3])
def test_each_micro_batch_gets_the_advantages_of_its_own_answers(tiny, tmp_path, judged, size):
    run = frozen_run(tiny, tmp_path / "out", micro_batch_size=size, steps=1, **judged)
    tokenizer = load_model(str(tiny / "draft"), "draft").tokenizer
    rewards = [numbers(tokenizer.decode(one.answer_ids, skip_special_tokens=True)) for one in run.steps[0]]
    others = [(sum(rewards) - reward) / (len(rewards) - 1) for reward in rewards]
    assert [len(part) for part in run.advantages] == ([1] * 8 if size == 1 else [3, 3, 2])
    given = [advantage for part in run.advantages for advantage in part]
    assert given == [close(own - other) for own, other in zip(rewards, others, strict=True)]


@dataclasses.dataclass(frozen=True)
class OneOfTwo(Ranks):
    """A rank of two, which hears from the other what a test says."""

    theirs: Sequence[float] = ()

    def gather(self, items):
        return [*items, self.theirs] if self.is_main else [self.theirs, *items]


def rank_of_two(number: int, theirs: Sequence[float]) -> Ranks:
    return OneOfTwo(number, 2, theirs=theirs)


@pytest.mark.parametrize("rank", [0, 1])
def test_two_ranks_have_one_baseline(rank):
    """Rewards 1 and 2 here, 3 and 6 there: the mean of the other three is the baseline, as in one process."""
    examples = [example((3, 4), (token,), DRAFT) for token in (1, 2)]
    found = judge_step(lambda one: float(one.answer_ids[0]), examples, rank_of_two(rank, [3.0, 6.0]))
    assert found is not None and found.mean == 3 and found.advantages == pytest.approx([1 - 11 / 3, 2 - 10 / 3])
    # One without an answer takes part all the same, and hears the mean.
    found = judge_step(lambda one: 0.0, [], rank_of_two(rank, [3.0, 6.0]))
    assert found is not None and (found.mean, found.advantages) == (4.5, [])
    given = [example((3, 4), (1,), GIVEN)]
    assert judge_step(lambda one: 1.0, given, rank_of_two(rank, [])) is None


def test_the_main_ranks_scores_count_for_all():
    draft, prompts = make_model(layers=1), [Prompt(f"p{number}", ()) for number in range(2)]
    for rank, expected in ((0, [7.0, 7.0]), (1, [0.25, 0.75])):
        ranks = rank_of_two(rank, [0.25, 0.75])
        own = OwnAnswers("score", lambda prompt, text: 7.0, prompts, [[3, 5, 4]] * 2, Sampling(), 2, 0, ranks)
        assert own.sums(draft)[0].tolist() == expected


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "gkd", "lmbda": 0.0}, "--lmbda 0 leaves no answer of the draft.*leave --reward away"),
        ({"target_fraction": 1.0}, "--target-fraction 1 leaves none of 300 steps.*leave --reward away"),
        ({"target_fraction": 0.9, "steps": 4}, "--target-fraction 0.9 leaves none of 4 steps"),
        ({"method": "gkd", "distill_weight": 1.0}, "--distill-weight 1 leaves no weight to --reward; lower it"),
        ({"method": "gkd", "batch_size": 1}, "--batch-size 1 leaves --reward no baseline.*at least 2 answers a step"),
        ({"target_fraction": 0.8, "steps": 4}, None),
        ({"method": "gkd", "batch_size": 2, "distill_weight": 0.99}, None),
        ({"method": "gkd", "lmbda": 0.01}, None),
    ],
)
def test_a_reward_that_would_never_judge_an_answer_is_refused(settings, text):
    if text is None:
        assert any_config(reward="m:f", **settings).watch == "reward"
        return
    with pytest.raises(ConfigError, match=text):
        any_config(reward="m:f", **settings)


# ---- the watched loss


def held_out_given(output) -> list[tuple[Example, tuple[int, ...]]]:
    """Given answers to the held-out prompts, and each prompt as the target reads it."""
    found = []
    for row in read_rollouts(output / "heldout"):
        name = row["prompt_id"]
        answer = given_answer_of(name)
        one = Example(name, prompt_of(name), answer, (int(GIVEN),) * len(answer))
        found.append((one, tuple(row.get("target_prompt_ids") or row["prompt_ids"])))
    return found


def test_the_watched_loss_is_against_the_guided_target(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", watch="loss", steps=1, **GUIDANCE)
    examples, hand = [one for one, _ in held_out_given(run.output)], ByHand(tiny)
    wanted = hand.loss("fkl", examples, guidance=(NEGATIVE, 0.8))
    assert run.history[0]["heldout_loss"] == close(wanted) != close(hand.loss("fkl", examples))


def test_the_watched_loss_is_against_the_target_that_sees_more(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="supervised-kd", watch="loss", steps=1, target_hint="w57 {answer}")
    hand, rows, plain = ByHand(tiny), [], []
    for one, seen in held_out_given(run.output):
        assert len(seen) > len(one.prompt_ids)
        q = answer_logits(hand.draft, one).softmax(-1)
        for prompt, losses in ((seen, rows), (one.prompt_ids, plain)):
            p = answer_logits(hand.target, dataclasses.replace(one, prompt_ids=prompt)).softmax(-1)
            losses.append(kl(p, q))
    longer, short = (float(torch.cat(losses).mean()) for losses in (rows, plain))
    assert run.history[0]["heldout_loss"] == close(longer) != close(short)


def test_the_watched_loss_is_on_the_targets_answers_where_the_training_is(tiny, tmp_path):
    """Only the held-out prompts bring answers along: gkd's fixed part is then the target's, and so is the loss."""
    _, heldout = split_prompts(load_prompts(str(tiny / "prompts.jsonl")), 6)
    names = {prompt.id for prompt in heldout}
    bare = [{key: row[key] for key in row if key != "answer" or row["id"] in names} for row in prompt_rows()]
    write_rows(tmp_path / "half.jsonl", bare)
    settings = {"method": "gkd", "lmbda": 0.0, "watch": "loss", "steps": 1}
    run = frozen_run(tiny, tmp_path / "out", prompts=str(tmp_path / "half.jsonl"), **settings)
    answers = [to_example(row) for row in read_rollouts(run.output / "heldout")]
    assert run.history[0]["heldout_loss"] == close(ByHand(tiny).loss("jsd", answers))


def test_held_out_answers_are_written_from_the_runs_seed(tiny, tmp_path):
    run = frozen_run(tiny, tmp_path / "out", method="sft", steps=1, seed=5)
    for row in read_rollouts(run.output / "heldout"):
        assert row["seed"] == rollout_seed(5, row["prompt_id"], 0)


# ---- the rate


def test_the_rate_rises_for_the_warm_up_and_falls_to_a_tenth_by_a_cosine(tiny, tmp_path):
    """Ten steps, three of them warming up; then 0.1 + 0.9 (1 + cos) / 2 of the peak."""
    run = frozen_run(tiny, tmp_path / "out", method="sft", steps=10, warmup=0.3, learning_rate=1e-29)
    cosine = [0.1 + 0.9 * (1 + torch.cos(torch.tensor(torch.pi * step / 7)).item()) / 2 for step in range(1, 8)]
    rates = [step.learning_rate / 1e-29 for step in run.measured]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, *cosine], rel=1e-4)
