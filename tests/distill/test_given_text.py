"""Text that comes with the user's files: given answers that are cut or empty, and raw text in blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import make_model, make_tokenizer
from tiny_runs import (
    annotate_config,
    before_each_step,
    example,
    prompt_rows,
    standard_models,
    train,
    write_folder,
    write_rows,
)

from specdistill import annotate
from specdistill.cli import main
from specdistill.data import Example, Prompt
from specdistill.data.prompts import encode
from specdistill.distill.answers import given, scorers
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.sequences.pool import Pool
from specdistill.errors import DataError
from specdistill.files import parquet
from specdistill.progress import Quiet


class Remarks(Quiet):
    """Keeps what a run says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("tiny"), standard_models())


@pytest.fixture
def trained_on(monkeypatch) -> list[Example]:
    """Every example that runs in this test train on."""
    seen: list[Example] = []
    before_each_step(monkeypatch, lambda step, examples: seen.extend(examples))
    return seen


# ---- given answers


EMPTY, WHITE, LONG = "p3", "p4", "p5"


@pytest.fixture
def mixed(tmp_path) -> Path:
    """Prompts of which one answer is empty, one white space, and one longer than the limit of 12 tokens."""
    answers = {EMPTY: "", WHITE: " \n\t", LONG: " ".join(f"w{number}" for number in range(30))}
    rows = [row | {"answer": answers.get(row["id"], row["answer"])} for row in prompt_rows(8)]
    path = tmp_path / "mixed.jsonl"
    # Twice, so that whichever prompts are held out, all kinds are trained on.
    again = [row | {"id": f"again-{row['id']}", "prompt": f"{row['prompt']} w9"} for row in rows]
    write_rows(path, rows + again)
    return path


def run_line(capsys, *words: str) -> str:
    """Runs a command that must fail with exit code 2 and one line; the line."""
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unexpected" not in line.lower()
    return line


@pytest.mark.parametrize("settings", [{"method": "sft"}, {"method": "supervised-kd"}, {"method": "gkd", "lmbda": 0.0}])
def test_empty_answers_are_not_trained_on_and_counted(tiny, tmp_path, mixed, trained_on, settings):
    """On the old tree their example was the end token alone: the draft learned to say nothing."""
    summary = train(tiny, tmp_path / "out", prompts=str(mixed), heldout_prompts=1, steps=6, eval_every=6, **settings)
    names = {row.prompt_id for row in trained_on}
    assert not names & {EMPTY, WHITE, f"again-{EMPTY}", f"again-{WHITE}"} and len(names) > 8
    assert (1,) not in {row.answer_ids for row in trained_on}
    written = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert written["answers_empty"] == summary.answers_empty >= 3
    assert written["answers_cut"] == summary.answers_cut >= 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"Empty answers, left out: {summary.answers_empty}." in card
    assert f"Answers cut at 12 tokens: {summary.answers_cut}." in card


def test_whole_answers_leave_no_remark(tiny, tmp_path):
    summary = train(tiny, tmp_path / "out", method="sft", steps=2, eval_every=2)
    assert summary.answers_cut == summary.answers_empty == 0
    assert "cut at" not in (tmp_path / "out" / "README.md").read_text()


def test_cut_and_empty_answers_are_reported_in_one_line():
    prompts = [Prompt(str(number), (), answer=text) for number, text in enumerate(["w1 w2 w3", "w1", " ", ""])]
    examples, counts = given.given_answers(prompts, [[6]] * 4, make_tokenizer(), 1, 2)
    assert [row.answer_ids for row in examples] == [(6, 7), (6, 1)]
    lines: list[str] = []
    counts.say(lines.append, len(prompts), 2)
    assert lines == ["of 4 answers 1 are cut at 2 tokens (--max-new-tokens), 2 are empty and left out"]
    given.AnswerCounts().say(lines.append, 4, 2)
    assert len(lines) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("train-draft", "--method", "sft"),
        ("train-draft", "--method", "supervised-kd"),
        ("train-draft", "--method", "gkd"),
        ("annotate",),
    ],
    ids=" ".join,
)
def test_only_empty_answers_are_refused_before_weights_are_read(tmp_path, capsys, words):
    folder = write_folder(tmp_path / "models", {"target": make_model(layers=1), "draft": make_model(layers=1)})
    for name in ("target", "draft"):
        (folder / name / "model.safetensors").unlink()
    write_rows(folder / "empty.jsonl", [row | {"answer": " "} for row in prompt_rows(8)])
    draft = ["--draft", str(folder / "draft")] if words[0] == "train-draft" else []
    places = ["--target", str(folder / "target"), "--prompts", str(folder / "empty.jsonl")]
    line = run_line(capsys, *words, *draft, *places, "--output", str(tmp_path / "out"))
    assert "answers are empty (prompt 'p" in line and "generate" in line
    assert not (tmp_path / "out").exists()


def test_annotate_leaves_out_empty_answers_and_counts_cut_ones(tiny, tmp_path, mixed):
    remarks = Remarks()
    config = annotate_config(tiny, tmp_path / "labels", rollouts=None, prompts=str(mixed), max_new_tokens=12)
    summary = annotate(config, remarks)
    rows = read_rollouts(tmp_path / "labels")
    assert not {row["prompt_id"] for row in rows} & {EMPTY, WHITE} and len(rows) == summary.answers == 12
    # Each row keeps its own prompt's text, although others before it are left out.
    long = next(row for row in rows if row["prompt_id"] == LONG)
    assert long["messages"][0]["content"] == prompt_rows()[5]["prompt"] and len(long["answer_ids"]) == 12
    assert (summary.answers_cut, summary.answers_empty) == (2, 4)
    assert "of 16 answers 2 are cut at 12 tokens (--max-new-tokens), 4 are empty and left out" in remarks.lines


def test_answers_without_a_token_are_left_out_of_rollouts(tiny, tmp_path, trained_on):
    """A server that broke an answer off leaves none; its likelihood was a division by zero in best-of-n."""
    tokenizer = make_tokenizer()
    rows = []
    for row in prompt_rows():
        prompt_ids = encode(Prompt(row["id"], ({"role": "user", "content": row["prompt"]},)), tokenizer)
        for copy, answer in enumerate([[], [6, 7, 1]]):
            rows.append(
                {"prompt_id": row["id"], "copy": copy, "prompt_ids": prompt_ids, "answer_ids": answer}
                | {"provenance": [2] * len(answer)}
            )
    parquet.write(tmp_path / "answers" / "train-00000.parquet", rows)
    for method in ("best-of-n", "seqkd"):
        summary = train(
            tiny, tmp_path / method, method=method, rollouts=str(tmp_path / "answers"), steps=2, eval_every=2
        )
        assert summary.answers_empty == 18
    assert {row.answer_ids for row in trained_on} == {(6, 7, 1)}


def test_a_set_without_any_token_is_refused():
    with pytest.raises(DataError, match="none of the 2 answers holds a token"):
        given.without_empty([example([6], []), example([7], [])], print)
    with pytest.raises(DataError, match="no text to train on"):
        # The sampler of the old tree went on looking for the next example forever.
        Pool([], 4, 0)


def test_an_empty_reference_answer_is_no_exact_match():
    """An answer without text scored 1 against it."""
    with pytest.raises(DataError, match="'x' has an empty field \"answer\""):
        scorers.check_scorer("exact-match", [Prompt("x", (), answer=" ")])
