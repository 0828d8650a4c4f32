"""bench --scorer and generate --scorer: how right finished answers are, counted by hand from the models' own texts."""

from __future__ import annotations

import dataclasses
import html
import json
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, perturbed, save
from tiny_runs import generate_config, write_rows

from specdistill import BenchConfig, bench, generate, load_model
from specdistill.data import Prompt
from specdistill.data.prompts import encode, load_prompts
from specdistill.data.scorers import SCORERS, check_scorer
from specdistill.decoding import Sampling, SpeculativeDecoder, generate_plain
from specdistill.distill.answers.shards import read_rollouts
from specdistill.errors import ConfigError, DataError
from specdistill.evaluation import measure
from specdistill.evaluation.answer_scores import AnswerJudge, PromptScores
from specdistill.evaluation.statistics import ratio, share
from specdistill.report.html import html_report
from specdistill.report.terminal import bench_tables
from specdistill.report.wording_verdict import verdict

LENGTH = 8
SUMS = "def total(prompt, text):\n    return sum(int(word[1:]) for word in text.split() if word[0] == 'w') / 100\n"


def total(text):
    return sum(int(word[1:]) for word in text.split() if word[0] == "w") / 100


def greedy_ids(model, prompt):
    """The model's own greedy answer, by transformers."""
    ids = torch.tensor([encode(prompt, model.tokenizer)])
    written = model.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LENGTH)
    return written[0, ids.shape[1] :].tolist()


def greedy_text(model, prompt):
    return model.decode(greedy_ids(model, prompt))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The target's greedy answers are right for six prompts of eight, those of a draft that always differs for two."""
    folder = tmp_path_factory.mktemp("scores")
    target = make_model(layers=3)
    save(target, folder / "target")
    save(make_model(layers=1, seed=9), folder / "draft")
    save(perturbed(target, 0.05), folder / "better")
    rows = [{"id": f"p{i}", "prompt": f"w{i} w{(7 * i) % 60}"} for i in range(8)]
    write_rows(folder / "bare.jsonl", rows)
    models = [load_model(str(folder / name), "draft") for name in ("target", "draft")]
    for row, prompt in zip(rows, load_prompts(str(folder / "bare.jsonl")), strict=True):
        texts = [greedy_text(model, prompt) for model in models]
        assert texts[0] != texts[1]
        row["answer"] = texts[0 if int(row["id"][1:]) < 6 else 1]
    write_rows(folder / "prompts.jsonl", rows)
    return folder


def config(files, **settings):
    given = {"target": str(files / "target"), "draft": str(files / "draft"), "prompts": str(files / "prompts.jsonl")}
    given |= {"num_draft_tokens": 2, "max_draft_tokens": 2, "max_new_tokens": LENGTH, "num_prompts": 0}
    return BenchConfig.flat(**(given | settings))


def test_target_draft_and_speculation_are_scored_apart(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    better = str(files / "better")
    report = bench(config(files, scorer="exact-match", latency_prompts=7, compare=better))
    score = report.score
    assert score.scorer == "exact-match" and (score.prompts, score.speculative_prompts) == (8, 7)
    assert score.target.mean == 6 / 8 and score.draft.mean == 2 / 8
    assert score.draft_minus_target.mean == pytest.approx(-0.5)
    # Paired by prompt: six went from right to wrong, two the other way.
    assert score.draft_minus_target.low < -0.5 < score.draft_minus_target.high
    # Greedy speculation is exact.
    assert score.speculative.mean == pytest.approx(6 / 7)
    assert tuple(score.speculative_minus_target) == (0, 0, 0)
    prompts, other = load_prompts(str(files / "prompts.jsonl")), load_model(better, "draft")
    right = [greedy_text(other, prompt) == prompt.answer for prompt in prompts]
    assert score.compared.mean == sum(right) / 8
    assert score.draft_minus_compared.mean == pytest.approx((2 - sum(right)) / 8)
    assert report.to_json()["score"]["target"]["mean"] == 0.75
    bench_tables(report)
    shown = capsys.readouterr().out
    assert "score of the finished answers (exact-match)" in shown and "speculative, by greedy" in shown
    page = html_report(report)
    for text in ("target alone", "draft alone", "speculative, by greedy", "0.750 ["):
        assert text in shown and text in page
    assert f"score of {Path(better).name} alone" in shown
    # Answers that were scored without their end are counted, by transformers' own text.
    named = (("target", score.target_cut, "the target"), ("draft", score.draft_cut, "the draft alone"))
    for name, counted, whose in named:
        model = load_model(str(files / name), "draft")
        ids = [greedy_ids(model, prompt) for prompt in prompts]
        assert counted == sum(len(one) == LENGTH and one[-1] not in model.eos_token_ids for one in ids) > 0
        line = f"warning: {counted} of 8 answers of {whose} were cut at --max-new-tokens {LENGTH} and scored"
        assert line in shown and line in page


def test_a_students_bench_ends_with_its_score(files, capsys):
    """A model that cannot pay as a draft may be a good student: nobody tells it not to train."""
    report = bench(config(files, scorer="exact-match", latency_prompts=7))
    economics = dataclasses.replace(report.economics, verdict="cannot pay")
    report = dataclasses.replace(report, economics=economics, recommendation=None)
    bench_tables(report)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("the verdict is about drafting; a model that is served alone counts by its score: 0.250 [")
    assert " alone, 0.750 [" in last and " of the target, -0.500 [" in last and last.endswith(" paired")
    assert last[1:] in html.unescape(html_report(report)) and "Do not train" not in html_report(report)
    assert verdict(report).next == ""
    drafted = dataclasses.replace(report, score=None)
    assert verdict(drafted).next.startswith("Do not train this draft") and "Do not train" in html_report(drafted)
    bench_tables(drafted)
    assert "the verdict is about drafting" not in capsys.readouterr().out


def test_the_score_of_a_lossy_rule_is_that_of_its_own_text(files, tmp_path, monkeypatch):
    (tmp_path / "sums_of_test.py").write_text(SUMS)
    monkeypatch.chdir(tmp_path)
    lossy = {"temperature": 1.0, "rule": "lenient", "lenience": 0.1, "seed": 3}
    report = bench(config(files, scorer="sums_of_test:total", **lossy))
    target, draft = load_model(str(files / "target")), load_model(str(files / "draft"), "draft")
    decoder = SpeculativeDecoder(
        target, draft, num_draft_tokens=2, sampling=Sampling(temperature=1.0), rule="lenient", lenience=0.1
    )
    texts = []
    for number, prompt in enumerate(load_prompts(str(files / "prompts.jsonl"))):
        ids = encode(prompt, target.tokenizer)
        (answer,) = decoder.generate([ids], max_new_tokens=LENGTH, seeds=[3 * 100_003 + number])
        texts.append(target.decode(answer.token_ids))
    assert report.score.speculative.mean == pytest.approx(sum(map(total, texts)) / 8)
    # The draft alone samples as the server does.
    asked = [encode(prompt, target.tokenizer) for prompt in load_prompts(str(files / "prompts.jsonl"))]
    seeds = [3 * 100_003 + number for number in range(8)]
    alone = generate_plain(draft, asked, sampling=Sampling(), max_new_tokens=LENGTH, seeds=seeds)
    own = [total(draft.decode(answer.token_ids)) for answer in alone]
    assert report.score.draft.mean == pytest.approx(sum(own) / 8)
    # The target alone wrote something else.
    assert report.score.speculative_minus_target.mean != 0
    gap = report.score.speculative.mean - report.score.target.mean
    assert report.score.speculative_minus_target.mean == pytest.approx(gap, abs=1e-6)


def test_the_speculative_score_is_paired_with_the_plain_answers_of_the_same_timed_run():
    """The target's answers beside them are other samples: p0 came out wrong there, and right in the timed run."""
    judge = AnswerJudge("exact-match", SCORERS["exact-match"], (), LENGTH)
    target, draft = PromptScores(p0=0.0, p1=0.0, p2=1.0), PromptScores(p0=0.0, p1=0.0, p2=0.0)
    score = judge.section(target, draft, (PromptScores(p0=1.0, p1=0.0), PromptScores(p0=0.0, p1=0.0)))
    assert score.speculative_minus_target.mean == -1 / 2
    assert score.draft_minus_target.mean == pytest.approx(-1 / 3)


def test_an_engines_answers_are_scored_beside_the_drafts_own(files):
    report = bench(config(files, engine="transformers", scorer="exact-match", compare=None))
    score = report.score
    assert (score.target.mean, score.draft.mean, score.speculative.mean) == (0.75, 0.25, 0.75)
    assert score.compared is None and "compared" not in report.to_json()["score"]


def test_no_section_without_a_scorer(files):
    report = bench(config(files))
    assert report.score is None and "score" not in report.to_json()
    assert "Score of the finished answers" not in html_report(report)


@pytest.mark.parametrize("engine", ["specdistill", "transformers"])
def test_prompts_without_answers_are_refused_before_models_are_found(files, monkeypatch, engine):
    def refuse(*arguments, **named):
        raise AssertionError("looked for models")

    for module in (measure, __import__("specdistill.serving.engine_models", fromlist=["find"])):
        monkeypatch.setattr(module, "find_pair", refuse)
    bare = {"prompts": str(files / "bare.jsonl"), "engine": engine}
    with pytest.raises(DataError, match=r'prompts have no field "answer" .*, which --scorer exact-match compares'):
        bench(config(files, scorer="exact-match", **bare))
    with pytest.raises(ConfigError, match="unknown --scorer 'magic'; choose exact-match, number, json or module"):
        bench(config(files, scorer="magic", **bare))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("def judge(text): return 1", r"odd_test:judge must take \(prompt, text\), but takes \(text\)"),
        ("async def judge(prompt, text): return 1", "odd_test:judge is async; it must return a number"),
        ("class Judge:\n    def __call__(self, prompt): return 1\njudge = Judge()", r"but takes \(prompt\)"),
        ("def judge(prompt, text, more): return 1", r"but takes \(prompt, text, more\)"),
        ("def judge(*given, **named): return 1", None),
        ("judge = max", None),
    ],
)
def test_a_function_that_cannot_be_asked_is_refused_at_once(tmp_path, monkeypatch, function, text):
    (tmp_path / "odd_test.py").write_text(function)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_test", raising=False)
    if text is None:
        assert check_scorer("odd_test:judge", [], flag="--reward") is not None
        return
    with pytest.raises(ConfigError, match=text):
        check_scorer("odd_test:judge", [])


@pytest.mark.parametrize("flag", ["--scorer", "--strict-scorer", "--reward"])
@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("my_checks.py:reasoning", "my_checks:reasoning"),
        ("./my_checks.py:reasoning", "my_checks:reasoning"),
        ("checks/mine.py:reasoning", "checks.mine:reasoning"),
    ],
)
def test_a_file_in_place_of_a_module_is_told_how_to_write_it(flag, typed, right):
    with pytest.raises(ConfigError, match=f"{flag} {typed} names a file, not a module; write {right}$"):
        check_scorer(typed, [], flag=flag)


def test_generate_scores_what_one_model_writes(files, tmp_path):
    settings = {"prompts": str(files / "prompts.jsonl"), "max_new_tokens": LENGTH, "temperature": 0.0}
    summary = generate(generate_config(files, tmp_path / "greedy", scorer="exact-match", **settings))
    target = summary.generators["target"]
    assert (target.mean_score, target.right_answers.coverage) == (0.75, 0.75)
    assert target.target_log_likelihood is None
    sampled = settings | {"temperature": 1.0, "rollouts_per_prompt": 3}
    summary = generate(generate_config(files, tmp_path / "sampled", scorer="tiny_runs:count_w7", **sampled))
    counts = [row["answer"].split().count("w7") for row in read_rollouts(tmp_path / "sampled")]
    assert summary.generators["target"].mean_score == pytest.approx(sum(counts) / 24)


@pytest.mark.parametrize(("scores", "low", "high"), [([1.0] * 8, 0.631, 1.0), ([0.0] * 8, 0.0, 0.369)])
def test_equal_scores_have_an_interval_of_a_proportion(scores, low, high):
    """A bootstrap over eight right answers would be sure; Clopper and Pearson's interval for 8 of 8 is 0.631 to 1."""
    found = share(scores)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)
    assert share([0.5] * 8) == ratio([0.5] * 8, [1] * 8)
    assert not share([1.0] * 5).has_interval


# ---- the scorers


@pytest.mark.parametrize(
    ("scorer", "answer", "text", "right"),
    [
        ("number", "72", "48 + 24 = 72", True),
        ("number", "so it is\n#### 1,200", "1200.0 euros, all in all", True),
        ("number", "-3", "It is -3.", True),
        ("number", "-3", "x = \N{MINUS SIGN}3", True),
        ("number", "3", "x = \N{MINUS SIGN}3", False),
        ("number", "12", "between 10-12", True),
        ("number", "72", "72 or 73", False),
        ("number", "7", "w7", False),
        ("number", "7", "seven", False),
        ("number", "0.5", ".5", True),
        ("json", '{"a": 1, "b": [true, null]}', ' {"b": [true, null],\n "a": 1.0}\n', True),
        ("json", '{"a": 1}', '```json\n{"a": 1}\n```', True),
        ("json", "1", "```json\n1\n```\nor\n```json\n2\n```", False),
        ("json", "2", "```json\n1\n```\nor\n```json\n2\n```", False),
        ("json", '{"a": 1}', '{"a": true}', False),
        ("json", '{"a": 1}', '{"a": 1, "b": 2}', False),
        ("json", "[1, 2]", "[2, 1]", False),
        ("json", '{"a": 1}', 'Here: {"a": 1}', False),
        ("json", '{"a": 1}', '{"a": NaN', False),
        ("json", "[1]", "[" * 100_000, False),
    ],
)
def test_numbers_and_json(scorer, answer, text, right):
    assert SCORERS[scorer](Prompt("p", (), answer=answer), text) == float(right)


@pytest.mark.parametrize(
    ("scorer", "answer", "text"),
    [("number", "none", "no number in its field"), ("json", "{", "no JSON in its field"), ("json", " ", "an empty")],
)
def test_an_answer_that_a_scorer_can_not_read_is_refused(scorer, answer, text):
    with pytest.raises(DataError, match=f"prompt 'x' has {text}"):
        check_scorer(scorer, [Prompt("x", (), answer=answer)])


def test_the_given_answers_of_service_mails_are_json(tmp_path):
    """JSON equality forgives what the mails' exact match does not: the order of keys."""
    given = {"customer": "A B", "urgent": True, "deadline": None}
    prompt = Prompt("m", (), answer=json.dumps(given))
    turned = json.dumps(dict(reversed(given.items())))
    assert SCORERS["json"](prompt, turned) == 1 and SCORERS["exact-match"](prompt, turned) == 0
