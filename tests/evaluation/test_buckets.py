"""Where acceptance comes from: buckets worked out by hand, thinking tags, and warnings that noise does not set off."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from tiny_models import make_model, make_tokenizer, perturbed, save
from tiny_runs import standard_models, train, write_folder, write_rows

from specdistill import BenchConfig, bench
from specdistill.data.batch import Example
from specdistill.data.prompts import Prompt
from specdistill.data.thinking import thinking_tokens
from specdistill.evaluation.buckets import FAR, Split, low_buckets, split_tokens
from specdistill.report.html import html_report
from specdistill.report.json_file import json_text
from specdistill.report.terminal import bench_tables


def prompt(name, *roles, category="all"):
    return Prompt(name, tuple({"role": role, "content": "x"} for role in roles), category)


def tagged_tokenizer():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    return tokenizer


# Two prompts: 510 tokens and 4 answered, 20 tokens and 18 answered after two turns of the user.
PROMPTS = [prompt("a", "user", category="chat"), prompt("b", "system", "user", "assistant", "user", category="code")]
OPEN, CLOSE, WORD = 65, 66, 7
ANSWERS = [
    Example("a", (WORD,) * 510, (OPEN, WORD, CLOSE, WORD), (3,) * 4),
    Example("b", (WORD,) * 20, (WORD,) * 18, (3,) * 18),
]
ALPHAS = [np.array([1.0, 0.5, 0.25, 0.0]), np.array([1.0] * 16 + [0.5, 0.0])]


def by_hand(kind):
    buckets = split_tokens(PROMPTS, ANSWERS, tagged_tokenizer())[kind].buckets(ALPHAS)
    return {name: (bucket.alpha, bucket.tokens, bucket.prompts) for name, bucket in buckets.items()}


def test_two_prompts_by_hand():
    """The tokens behind 510, 511, 512 and 513 others, and those behind 20 to 37."""
    assert by_hand("context") == {"0-512": ((1 + 0.5 + 16.5) / 20, 20, 2), "512-1024": (0.125, 2, 1)}
    assert by_hand("position") == {"0-16": ((1.75 + 16) / 20, 20, 2), "16-32": (0.25, 2, 1)}
    assert by_hand("turn") == {"1": (1.75 / 4, 4, 1), "2": (16.5 / 18, 18, 1)}
    # <think> itself is outside, what follows it and </think> are inside.
    assert by_hand("thinking") == {"outside": ((1 + 0 + 16.5) / 20, 20, 2), "inside": (0.75 / 2, 2, 1)}
    assert by_hand("category") == {"chat": (1.75 / 4, 4, 1), "code": (16.5 / 18, 18, 1)}


def test_two_prompts_are_too_few_for_an_interval_or_a_warning():
    splits = split_tokens(PROMPTS, ANSWERS, tagged_tokenizer())
    assert all(math.isnan(end) for bucket in splits["turn"].buckets(ALPHAS).values() for end in bucket.ci95)
    assert low_buckets(splits, ALPHAS) == []


def test_answers_without_tags_have_no_thinking_buckets():
    assert split_tokens(PROMPTS[1:], ANSWERS[1:], make_tokenizer())["thinking"].buckets(ALPHAS[1:]) == {}


@pytest.mark.parametrize(
    ("prompt_text", "answer", "inside"),
    [
        ("hi <bot>", ["<think>", "a", "</think>", "b"], "0110"),
        # The template opens it: Qwen3's and DeepSeek-R1's end with a line break behind the tag.
        ("hi <bot> <think> \n", ["a", "</think>", "b"], "110"),
        # Qwen3 without thinking: the template opens and closes it.
        ("hi <bot> <think> </think>", ["a", "b"], None),
        # A user's mention is no opening.
        ("what is <think> ? <bot>", ["a", "b"], None),
        # The opening stood in a prompt that was cut, or rendered elsewhere.
        ("hi <bot>", ["a", "</think>", "b"], "110"),
        # The tags in pieces, as in tokenizers without a token for them.
        ("hi <bot>", ["<th", "ink>", "a", "</", "think", ">", "b"], "0011110"),
        ("hi <bot>", ["<think>", "a", "</think>", "b", "<think>", "c"], "011001"),
        ("hi <bot>", ["[THINK]", "</think>", "[/THINK]", "b"], "0110"),
        ("x <|start|>assistant", ["<|channel|>", "analysis", "<|message|>", "a", "<|end|>", "b"], "000110"),
        # Phi ends every answer with it.
        ("hi <bot>", ["a", "<|end|>"], None),
    ],
)
def test_thinking_tags(prompt_text, answer, inside):
    words = [*prompt_text.split(" "), *answer]
    asked = len(words) - len(answer)
    found = thinking_tokens(range(asked), range(asked, len(words)), lambda token: words[token])
    assert found == (None if inside is None else [state == "1" for state in inside])


def answers_of(chance, rng, prompts=24, tokens=60):
    return [(rng.random(tokens) < chance).astype(float) for _ in range(prompts)]


def halves(prompts=24, tokens=60):
    codes = [np.arange(tokens) // (tokens // 2) for _ in range(prompts)]
    return Split(["0-512", "512-1024"], codes)


def test_a_bucket_far_below_the_rest_is_named_with_its_numbers():
    chance = np.where(np.arange(60) < 30, 0.8, 0.4)
    alphas = answers_of(chance, np.random.default_rng(0))
    (low,) = low_buckets({"context": halves()}, alphas)
    here, rest = (np.mean([alpha[part] for alpha in alphas]) for part in (slice(30, 60), slice(0, 30)))
    assert (low.kind, low.bucket) == ("context", "512-1024")
    assert low.minus_rest.mean == pytest.approx(here - rest) and low.minus_rest.high < -FAR
    assert "behind 512-1024 tokens of context" in low.remark and f"{rest:.3f} elsewhere" in low.remark
    assert f"alpha {here:.3f} [" in low.remark and "on 720 tokens" in low.remark


def test_small_or_uncertain_differences_do_not_warn():
    certain_but_small = answers_of(np.where(np.arange(4000) < 2000, 0.80, 0.77), np.random.default_rng(0), tokens=4000)
    assert low_buckets({"context": halves(tokens=4000)}, certain_but_small) == []
    few = answers_of(np.where(np.arange(60) < 30, 0.8, 0.4), np.random.default_rng(0), prompts=5)
    assert low_buckets({"context": halves(prompts=5)}, few) == []


def test_chance_warns_in_at_most_one_report_in_twenty():
    """Answers of different quality, split at random in four kinds: nothing is really low."""
    warned = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        alphas = [(rng.random(40) < rng.uniform(0.3, 0.9)).astype(float) for _ in range(20)]
        by_prompt = [Split(list("abc"), [np.full(40, rng.integers(3)) for _ in alphas]) for _ in range(2)]
        by_token = [Split(list("abc"), [rng.integers(0, 3, 40) for _ in alphas]) for _ in range(2)]
        kinds = ("category", "turn", "context", "position")
        warned += bool(low_buckets(dict(zip(kinds, [*by_prompt, *by_token], strict=True)), alphas))
    assert warned <= 2


# ---- the whole bench


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = write_folder(tmp_path_factory.mktemp("buckets"), standard_models())
    target = make_model(layers=3, context=1024)
    save(target, folder / "long")
    save(perturbed(target, 0.02), folder / "near")
    rows = [
        {"id": f"p{i}", "prompt": " ".join(f"w{(i * j) % 60}" for j in range(480)), "category": "long"}
        for i in range(8)
    ]
    turns = ({"role": role, "content": "w1 w2"} for role in ("user", "assistant", "user"))
    write_rows(folder / "long.jsonl", [*rows, {"id": "t", "messages": list(turns), "category": "turns"}])
    return folder


def settings(folder, **more):
    places = {
        name: str(folder / path) for name, path in (("target", "long"), ("draft", "near"), ("prompts", "long.jsonl"))
    }
    return BenchConfig.flat(**(places | {"max_new_tokens": 40, "max_draft_tokens": 2, "num_draft_tokens": 2} | more))


@pytest.mark.parametrize("engine", ["specdistill", "transformers"])
def test_every_decoder_reports_the_same_tokens_in_every_split(folder, engine, capsys):
    report = bench(settings(folder, engine=engine))
    found, acceptance = report.buckets, report.acceptance
    for buckets in (found.context, found.position, found.turn):
        assert sum(bucket.tokens for bucket in buckets.values()) == acceptance.tokens_scored
        mean = sum(bucket.alpha * bucket.tokens for bucket in buckets.values()) / acceptance.tokens_scored
        assert mean == pytest.approx(acceptance.alpha["greedy"].mean)
    assert set(found.context) == {"0-512", "512-1024"} and set(found.turn) == {"1", "2"} and found.thinking == {}
    assert set(found.position) == {"0-16", "16-32", "32-64"}
    category = acceptance.by_category["long"]
    assert category.alpha_ci95[0] <= category.alpha_greedy <= category.alpha_ci95[1] and category.tokens > 8
    assert found.unlike_training == []
    bench_tables(report)
    printed, page = capsys.readouterr().out, html_report(report)
    assert "where acceptance comes from" in printed and "512-1024" in printed and "512-1024" in page
    stored = json.loads(json_text(report))["buckets"]["context"]["0-512"]
    assert stored.keys() == {"alpha", "ci95", "tokens", "prompts"} and len(stored["ci95"]) == 2


def test_texts_unlike_those_of_the_training_are_named(folder, tmp_path):
    train(folder, tmp_path / "trained", steps=2, eval_every=2, rollouts_per_prompt=1)
    draft = str(tmp_path / "trained")
    same = bench(
        settings(
            folder, target=str(folder / "target"), draft=draft, prompts=str(folder / "prompts.jsonl"), max_new_tokens=12
        )
    )
    assert same.buckets.unlike_training == []
    # Trained: 2 words between 3 tags (<user>, <bot> and one of the template), and 12 new tokens.
    longer = bench(
        settings(
            folder, target=str(folder / "target"), draft=draft, prompts=str(folder / "prompts.jsonl"), max_new_tokens=60
        )
    )
    (remark,) = longer.buckets.unlike_training
    assert "have a longer context" in remark and "was trained on (16:" in remark
    target = make_model(layers=3)
    target.tokenizer.chat_template = target.tokenizer.chat_template.replace("<user>", "<unk>")
    save(target, tmp_path / "other")
    other = bench(
        settings(
            folder,
            target=str(tmp_path / "other"),
            draft=draft,
            prompts=str(folder / "prompts.jsonl"),
            max_new_tokens=12,
        )
    )
    (remark,) = other.buckets.unlike_training
    assert "chat template" in remark and draft in remark
