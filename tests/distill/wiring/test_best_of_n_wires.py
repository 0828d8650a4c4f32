"""best-of-n by its effect: which answers are trained on, and what is counted, on samples that were written by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_runs
from tiny_models import make_model
from tiny_runs import any_config, example, generate_config, history, prompt_rows, train

from specdistill import generate
from specdistill.data import Prompt, Provenance
from specdistill.distill.answers.selection import Judge, build_judge, distinct, select_answers
from specdistill.distill.answers.settings import JudgeSettings
from specdistill.distill.answers.shards import SHARD, read_rollouts
from specdistill.errors import ConfigError, DataError
from specdistill.files import parquet
from specdistill.report.distill import generation_table, training_table

PROMPTS = [Prompt(str(index), ({"role": "user", "content": f"w{index}"},), answer=f"w{index} w3") for index in range(3)]
SAMPLES = [
    ("0", "w0 w3"),
    ("0", "w9 w9"),
    ("0", "w0 w3"),
    ("1", "w1 w3"),
    ("1", "w0 w3"),
    ("2", "w0 w3"),
]


@pytest.fixture(scope="module")
def target():
    return make_model()


@pytest.fixture
def scorer_module(tmp_path, monkeypatch):
    """Functions of the current folder: a count, whether a text begins with the answer, and whether it is the answer."""
    (tmp_path / "scorers_of_n.py").write_text(
        "def words(prompt, text):\n    return text.split().count('w7') / 10\n\n"
        "def begins(prompt, text):\n    return float(text.startswith(prompt.answer))\n\n"
        "def strict(prompt, text):\n    return float(text == prompt.answer)\n"
    )
    monkeypatch.chdir(tmp_path)
    return "scorers_of_n"


def sampled(target, samples=SAMPLES):
    """Samples in the target's ids."""
    return [
        example((3, 5, 4), target.tokenizer(text, add_special_tokens=False)["input_ids"], name=name)
        for name, text in samples
    ]


def by_table(table):
    """A scorer that looks texts up."""
    return lambda prompt, text: table.get((prompt.id, text), 0.0)


def test_every_right_answer_is_kept_once_and_the_counts_are_those_by_hand(target):
    samples = [*SAMPLES[:5], ("0", "w3 w0"), SAMPLES[5]]
    table = {("0", "w0 w3"): 1.0, ("0", "w3 w0"): 1.0, ("1", "w1 w3"): 1.0}
    # The stricter one takes an answer that is wrong, too: it is asked about the right ones only.
    strict = {("0", "w0 w3"): 1.0, ("1", "w1 w3"): 1.0, ("1", "w0 w3"): 1.0}
    examples = sampled(target, samples)
    judge = Judge("table", by_table(table), 1.0, by_table(strict))
    kept, counts = select_answers(examples, PROMPTS, target, judge, keep_correct=True)
    assert kept == [examples[0], examples[3], examples[5]], "each text once, the first one; prompt 2 is left out"
    assert (counts.prompts, counts.answers, counts.right, counts.covered) == (3, 7, 4, 2)
    assert counts.coverage == pytest.approx(2 / 3)
    assert (counts.distinct_right, counts.distinct_right_per_prompt) == (3, 1.0)
    assert (counts.false_positives, counts.false_positive_share) == (1, 0.25)


def test_the_threshold_is_where_right_begins(target):
    examples = sampled(target)
    table = {("0", "w0 w3"): 0.5, ("0", "w9 w9"): 0.4, ("1", "w1 w3"): 0.9, ("1", "w0 w3"): 0.6}
    for threshold, wanted in ((0.5, [0, 3, 4]), (0.4, [0, 1, 3, 4]), (0.6, [3, 4]), (0.91, [])):
        judge = Judge("table", by_table(table), threshold)
        if wanted:
            kept, _ = select_answers(examples, PROMPTS, target, judge, keep_correct=True)
            assert kept == [examples[number] for number in wanted]
        else:
            with pytest.raises(
                DataError, match=r"none of 6 answers to 3 prompts scores 0.91 or more by --scorer table"
            ):
                select_answers(examples, PROMPTS, target, judge, keep_correct=True)


def test_the_stricter_scorer_has_the_same_threshold(target):
    examples = sampled(target, [("0", "w0 w3"), ("0", "w9 w9"), ("1", "w1 w3")])
    table = {("0", "w0 w3"): 0.5, ("0", "w9 w9"): 0.9, ("1", "w1 w3"): 1.0}
    strict = {("0", "w0 w3"): 0.5, ("0", "w9 w9"): 0.4, ("1", "w1 w3"): 0.7}
    judge = Judge("table", by_table(table), 0.5, by_table(strict))
    _, counts = select_answers(examples, PROMPTS, target, judge, keep_correct=True)
    assert (counts.right, counts.false_positives) == (3, 1), "only 0.4 is below 0.5"


def test_without_keep_correct_the_best_right_answer_is_kept(target):
    examples = sampled(target)
    table = {("0", "w0 w3"): 0.5, ("0", "w9 w9"): 0.7, ("1", "w1 w3"): 0.3}
    kept, counts = select_answers(examples, PROMPTS, target, Judge("table", by_table(table), 0.5), keep_correct=False)
    assert kept == [examples[1]] and counts.covered == 1, "prompt 1's best is not right"
    kept, counts = select_answers(examples, PROMPTS, target, Judge("table", by_table(table), None), keep_correct=False)
    assert len(kept) == 3 and kept[1] == examples[3] and counts is None, "without a threshold the best one is kept"


@pytest.mark.parametrize("better", [0, 1])
def test_of_two_right_answers_the_one_that_scores_more_is_kept(target, better):
    """Whichever of the two the target finds likelier."""
    examples = sampled(target, [("0", "w0 w3"), ("0", "w9 w9")])
    table = {("0", "w0 w3"): 0.7, ("0", "w9 w9"): (0.6, 0.8)[better]}
    kept, _ = select_answers(examples, PROMPTS, target, Judge("table", by_table(table), 0.5), keep_correct=False)
    assert kept == [examples[better]]


def test_texts_that_differ_in_white_space_around_them_are_one(target):
    one, other = example((3, 4), (6, 7), name="0"), example((3, 4), (6, 7, 1), name="0")
    assert target.decode(one.answer_ids) == target.decode(other.answer_ids).strip()
    assert distinct([one, other, example((3, 4), (6, 7), name="1")], target) == [
        one,
        example((3, 4), (6, 7), name="1"),
    ]


@pytest.mark.parametrize(
    ("scorer", "threshold", "needed", "wanted"),
    [
        ("exact-match", None, False, 1.0),
        ("exact-match", 0.5, False, 0.5),
        ("target-likelihood", None, True, None),
        ("scorers_of_n:words", None, False, None),
        ("scorers_of_n:words", None, True, 1.0),
        ("scorers_of_n:words", 0.2, False, 0.2),
    ],
)
def test_which_threshold_holds(scorer_module, scorer, threshold, needed, wanted):
    settings = JudgeSettings(scorer=scorer, score_threshold=threshold, strict_scorer=None)
    assert build_judge(settings, PROMPTS, threshold_needed=needed).threshold == wanted


# ---- whole runs


def write_answers(directory: Path, texts: dict[str, list[str]]) -> Path:
    """A directory of rollouts with the given texts."""
    model = tiny_runs.standard_models()["target"]
    rows = [row for row in prompt_rows() if row["id"] in texts]
    written = []
    for row in rows:
        prompt = model.tokenizer(f"<user> {row['prompt']} <bot>", add_special_tokens=False)["input_ids"]
        for copy, text in enumerate(texts[row["id"]]):
            answer = [*model.tokenizer(text, add_special_tokens=False)["input_ids"], 1]
            written.append(
                {
                    "prompt_id": row["id"],
                    "copy": copy,
                    "prompt_ids": prompt,
                    "answer_ids": answer,
                    "provenance": [int(Provenance.TARGET)] * len(answer),
                }
            )
    directory.mkdir()
    parquet.write(directory / SHARD.format(0), written)
    return directory


def half_right() -> dict[str, list[str]]:
    """Even prompts have the right answer, a wrong one, one that only begins right, the right one again."""
    even = "{0}|w50|{0} w50|{0}"
    return {
        row["id"]: even.format(row["answer"]).split("|") if index % 2 == 0 else ["w51", "w52"]
        for index, row in enumerate(prompt_rows())
    }


def trained_on(monkeypatch) -> set[tuple[str, tuple[int, ...]]]:
    """Fills with what the steps of later runs train on."""
    seen: set[tuple[str, tuple[int, ...]]] = set()
    tiny_runs.before_each_step(
        monkeypatch, lambda step, examples: seen.update((row.prompt_id, row.answer_ids) for row in examples)
    )
    return seen


def training_ids(output: Path) -> set[str]:
    """Prompts that a run did not hold out."""
    held_out = {row["prompt_id"] for row in read_rollouts(output / "heldout")}
    return {row["id"] for row in prompt_rows()} - held_out


def answer_ids(text: str) -> tuple[int, ...]:
    return (*(int(word[1:]) + 5 for word in text.split()), 1)


def test_a_run_trains_on_all_right_answers_and_reports_what_it_counted(
    tiny, tmp_path, monkeypatch, scorer_module, capsys
):
    answers = write_answers(tmp_path / "answers", half_right())
    seen = trained_on(monkeypatch)
    scored = {"scorer": f"{scorer_module}:begins", "strict_scorer": f"{scorer_module}:strict"}
    summary = train(
        tiny, tmp_path / "out", method="best-of-n", keep_correct=True, rollouts=str(answers), steps=12, **scored
    )
    asked = training_ids(tmp_path / "out")
    even = {row["id"]: row["answer"] for row in prompt_rows()[::2] if row["id"] in asked}
    assert seen == {(name, answer_ids(text + more)) for name, text in even.items() for more in ("", " w50")}
    counts, covered = summary.right_answers, len(even)
    assert (counts.prompts, counts.answers) == (len(asked), 4 * covered + 2 * (len(asked) - covered))
    # Of four answers to an even prompt three begin right, two of these differ, and one is no answer at all.
    assert (counts.covered, counts.right, counts.distinct_right) == (covered, 3 * covered, 2 * covered)
    assert counts.false_positives == covered
    shares = {
        "coverage": covered / len(asked),
        "distinct_right_per_prompt": 2 * covered / len(asked),
        "false_positive_share": 1 / 3,
    }
    stored = json.loads((tmp_path / "out" / "summary.json").read_text())["right_answers"]
    for entry in (stored, *history(tmp_path / "out")[1:]):
        assert {name: entry[name] for name in shares} == pytest.approx(shares)
    training_table(summary)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"(coverage) {covered / len(asked):.1%}" in printed and "rejects" in printed and "33.3%" in printed


def test_exact_match_leaves_out_prompts_that_no_answer_is_right_for(tiny, tmp_path, monkeypatch):
    answers = write_answers(tmp_path / "answers", half_right())
    seen = trained_on(monkeypatch)
    summary = train(tiny, tmp_path / "out", method="best-of-n", scorer="exact-match", rollouts=str(answers), steps=12)
    asked = training_ids(tmp_path / "out")
    assert seen == {(row["id"], answer_ids(row["answer"])) for row in prompt_rows()[::2] if row["id"] in asked}
    assert summary.right_answers.distinct_right == summary.right_answers.covered == len(seen)


def test_a_run_without_a_right_answer_is_refused(tiny, tmp_path):
    answers = write_answers(tmp_path / "answers", {row["id"]: ["w51", "w52"] for row in prompt_rows()})
    told = (
        "none of 36 answers to 18 prompts scores 1 or more by --scorer exact-match; the first: "
        r"prompt 'w\d+ w\d+', answer 'w51', wanted 'w\d+ w\d+', score 0; sample more"
    )
    with pytest.raises(DataError, match=told):
        train(tiny, tmp_path / "out", method="best-of-n", scorer="exact-match", rollouts=str(answers))


def test_an_example_keeps_the_ends_of_a_long_answer(target):
    """Scorers look at the last line or the last number."""
    (row,) = sampled(target, [("0", "w0 " + "w3 " * 300 + "w9")])
    shown = Judge("table", lambda prompt, text: 0.25, 0.5).example([row], [0.25], PROMPTS, target)
    assert "answer 'w0 w3 " in shown and " ... " in shown and "w3 w9'" in shown and shown.endswith("score 0.25")
    assert len(shown) < 400


def test_answers_that_are_all_wrong_can_be_judged_again_as_the_refusal_says(tiny, tmp_path, scorer_module):
    settings = {"method": "best-of-n", "rollouts_per_prompt": 2, "steps": 9}
    output, strict = tmp_path / "out", f"{scorer_module}:strict"
    with pytest.raises(DataError) as refusal:
        train(tiny, output, scorer="exact-match", **settings)
    text = str(refusal.value)
    assert f"run the same command with --rollouts {output / 'rollouts'} and another --output" in text
    assert "choose another --scorer" in text and "--score-threshold" not in text
    again = {"rollouts": str(output / "rollouts"), "scorer": strict, "method": "best-of-n", "steps": 9}
    with pytest.raises(DataError, match=r"lower --score-threshold, or let a better model answer$"):
        train(tiny, tmp_path / "again", score_threshold=0.5, **again)
    assert train(tiny, tmp_path / "anew", score_threshold=0.0, **again).right_answers.right == 36


def test_best_of_n_of_ones_own_answers_trains_on_the_best_of_them(tiny, tmp_path, monkeypatch, scorer_module):
    """Target and draft are one model, and yet there is something to learn: which of its own answers are good."""
    seen = trained_on(monkeypatch)
    draft, scorer = str(tiny / "draft"), f"{scorer_module}:words"
    settings = {"target": draft, "draft": draft, "scorer": scorer, "rollouts_per_prompt": 4, "steps": 9, "patience": 0}
    train(tiny, tmp_path / "out", method="best-of-n", **settings)
    by_prompt: dict[str, list[tuple[int, ...]]] = {}
    for row in read_rollouts(tmp_path / "out" / "rollouts"):
        by_prompt.setdefault(row["prompt_id"], []).append(tuple(row["answer_ids"]))
    assert len(by_prompt) == 18 and all(len(copies) == 4 for copies in by_prompt.values())
    assert {name for name, _ in seen} == set(by_prompt), "one answer to each prompt"
    assert len(seen) == 18
    for name, ids in seen:
        assert ids in by_prompt[name] and ids.count(12) == max(copy.count(12) for copy in by_prompt[name])
    assert any(ids.count(12) for _, ids in seen)
    assert history(tmp_path / "out")[-1]["grad_norm"] > 0


def test_generate_counts_right_answers_of_one_model(tiny, tmp_path, scorer_module, capsys):
    """A small teacher that is asked more often: coverage and diversity are read off its report."""
    config = generate_config(
        tiny,
        tmp_path / "out",
        rollouts_per_prompt=3,
        scorer=f"{scorer_module}:words",
        score_threshold=0.1,
        strict_scorer=f"{scorer_module}:begins",
    )
    summary = generate(config).generators["target"]
    texts: dict[str, list[str]] = {}
    for row in read_rollouts(tmp_path / "out"):
        texts.setdefault(row["prompt_id"], []).append(row["answer"].strip())
    right = {name: [text for text in copies if "w7" in text.split()] for name, copies in texts.items()}
    counts = summary.right_answers
    assert counts.right == sum(map(len, right.values())) > 0
    assert counts.covered == sum(map(bool, right.values()))
    assert counts.distinct_right == sum(len(set(copies)) for copies in right.values())
    assert (counts.prompts, counts.answers, counts.false_positives) == (24, 72, counts.right)
    generation_table(generate(config))
    shown = capsys.readouterr().out
    assert f"{counts.coverage:.1%}" in shown
    # One answer that is not right, with what was wanted.
    rows = {prompt["id"]: prompt for prompt in prompt_rows()}
    wrong = next(row for row in read_rollouts(tmp_path / "out") if "w7" not in row["answer"].split())
    asked = rows[wrong["prompt_id"]]
    expected = f"prompt {asked['prompt']!r}, answer {wrong['answer']!r}, wanted {asked['answer']!r}, score 0"
    assert summary.example == expected and f"an answer of target: {expected}" in shown


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keep_correct": True}, "--keep-correct needs a --scorer that tells right from wrong"),
        ({"score_threshold": 0.5}, "--score-threshold needs a --scorer"),
        ({"strict_scorer": "exact-match"}, "--strict-scorer needs a --scorer"),
        ({"scorer": "m:f", "strict_scorer": "target-likelihood"}, "--strict-scorer must tell right from wrong"),
        ({"method": "seqkd", "scorer": "m:f", "keep_correct": True}, "goes with --method best-of-n, not with seqkd"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        any_config(**({"method": "best-of-n"} | settings))


def test_scorers_are_found_before_models(tmp_path, scorer_module):
    """A strict scorer of a measure without right and wrong is refused, and so is one that is not there."""
    settings = JudgeSettings(scorer=f"{scorer_module}:words", score_threshold=None, strict_scorer="exact-match")
    with pytest.raises(ConfigError, match="say with --score-threshold"):
        build_judge(settings, PROMPTS, threshold_needed=False)
    missing = JudgeSettings(scorer="exact-match", score_threshold=None, strict_scorer=f"{scorer_module}:none")
    with pytest.raises(ConfigError, match=r"--strict-scorer scorers_of_n:none: .*has no function none"):
        build_judge(missing, PROMPTS, threshold_needed=False)
    with pytest.raises(DataError, match="which --strict-scorer exact-match compares with"):
        build_judge(
            JudgeSettings(scorer=f"{scorer_module}:words", score_threshold=0.5, strict_scorer="exact-match"),
            [Prompt("x", ())],
            threshold_needed=False,
        )
