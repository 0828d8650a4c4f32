"""Text that comes with the user's files: given answers that are cut or empty, and raw text in blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import make_model, make_tokenizer
from tiny_runs import (
    annotate_config,
    before_each_step,
    example,
    history,
    prompt_rows,
    same_weights,
    standard_models,
    train,
    train_config,
    write_folder,
    write_rows,
)
from tokenizers.processors import TemplateProcessing

from specdistill import annotate, load_model, train_draft
from specdistill.cli import main
from specdistill.data import Example, Prompt
from specdistill.data.prompts import encode
from specdistill.data.scorers import check_scorer
from specdistill.data.soft_labels import LabelStore
from specdistill.data.texts import Piece, check_texts, read_pieces
from specdistill.distill.answers import given
from specdistill.distill.answers.shards import read_rollouts
from specdistill.distill.answers.text_blocks import block_size, document_start, text_blocks
from specdistill.distill.processes.ranks import Ranks
from specdistill.distill.sequences.pool import Pool
from specdistill.distill.sequences.text_stream import TextStream
from specdistill.errors import ConfigError, DataError, OutputError
from specdistill.evaluation.acceptance import answer_hidden_states
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
    assert f"Empty answers or documents, left out: {summary.answers_empty}." in card
    assert f"Answers cut at 12 tokens: {summary.answers_cut}." in card


@pytest.mark.parametrize("method", ["sft", "gkd"])
def test_training_says_how_many_answers_it_cut_and_left_out(tiny, tmp_path, mixed, method):
    said = Remarks()
    settings = {"prompts": str(mixed), "heldout_prompts": 1, "steps": 1, "eval_every": 1, "method": method}
    summary = train_draft(train_config(tiny, tmp_path / "out", **settings), said)
    (line,) = [line for line in said.lines if "answers" in line and "left out" in line]
    assert f"{summary.answers_cut} are cut at 12 tokens (--max-new-tokens)" in line
    assert f"{summary.answers_empty} are empty and left out" in line and summary.answers_empty >= 3


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
    capsys.readouterr()  # transformers' progress of writing the folder
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
        check_scorer("exact-match", [Prompt("x", (), answer=" ")])


# ---- raw text

BOS, EOS, PLAIN = 3, 1, "plain"


def bos_tokenizer(form: str):
    """A tokenizer that writes special tokens around a text in a family's form."""
    tokenizer = make_tokenizer()
    names = [("<user>", BOS), ("<eos>", EOS)]
    if form != PLAIN:
        tokenizer._tokenizer.post_processor = TemplateProcessing(single=form, special_tokens=names)
    return tokenizer


@pytest.mark.parametrize(
    ("form", "start"),
    [
        pytest.param("<user> $A", [BOS], id="Gemma, Llama, Mistral"),
        pytest.param("<user> $A <eos>", [BOS], id="add_eos_token"),
        pytest.param("$A <eos>", [], id="an end alone"),
        pytest.param(PLAIN, [], id="GPT-2, Qwen"),
    ],
)
def test_documents_start_as_the_tokenizer_starts_a_text(form, start):
    assert document_start(bos_tokenizer(form)) == start


def cut(texts, block, form="<user> $A"):
    blocks = text_blocks([Piece(text) for text in texts], bos_tokenizer(form), EOS, block)
    return [(list(row.prompt_ids), list(row.answer_ids)) for row in blocks]


def test_every_block_begins_with_bos_and_every_token_is_predicted_once():
    """Without it Gemma-3-270M's mean loss was 5.60 per token, with it 2.39."""
    assert cut(["w1 w2", "w3"], 2) == [([BOS], [6, 7]), ([BOS], [EOS, BOS]), ([BOS], [8, EOS])]
    # A document that begins with the block is not given a second BOS.
    assert cut(["w1 w2", "w3"], 3) == [([BOS], [6, 7, EOS]), ([BOS], [8, EOS])]
    assert cut(["w1"], 64) == [([BOS], [6, EOS])]


@pytest.mark.parametrize("block", range(1, 9))
def test_blocks_of_any_size_say_the_same_text(block):
    for form, first in (("<user> $A", 0), (PLAIN, 1)):
        blocks = cut(["w1 w2 w3", "w4", "w5 w6"], block, form)
        predicted = [token for _, answer in blocks for token in answer if token != BOS]
        assert predicted == [6, 7, 8, EOS, 9, EOS, 10, 11, EOS][first:]
        assert all(len(answer) == block for _, answer in blocks[:-1])


def test_blocks_read_no_further_than_they_must():
    read = 0

    def pieces():
        nonlocal read
        # How far it has counted is read outside.
        for read in range(1, 10**6):  # noqa: B007
            yield Piece("w1 w2 w3")

    blocks = text_blocks(pieces(), bos_tokenizer("<user> $A"), EOS, 8)
    for _ in range(3):
        next(blocks)
    assert read <= 64


def numbered(count: int):
    return lambda: iter([example([BOS], [number]) for number in range(count)])


def drawn(stream: TextStream, steps: int) -> list[int]:
    return [row.answer_ids[0] for step in range(steps) for row in stream.next_batch(step + 1)]


def test_a_corpus_is_read_as_far_as_it_is_trained_on():
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1
            yield example([BOS], [read])

    first = drawn(TextStream(endless, 4, 0), 10)
    assert read <= 1024 + 40 and len(set(first)) == 40 and first != sorted(first)


def test_every_block_comes_once_an_epoch_in_another_order():
    stream = TextStream(numbered(1500), 10, 0)
    epochs = [drawn(stream, 150) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(1500)) and epochs[0] != epochs[1]
    assert drawn(TextStream(numbered(1500), 10, 1), 150) != epochs[0]


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_a_stream_goes_on_where_it_was(steps):
    uncut, cut_off = (TextStream(numbered(9), 4, 5) for _ in range(2))
    drawn(uncut, steps), drawn(cut_off, steps)
    resumed = TextStream(numbered(9), 4, 5)
    resumed.load_state_dict(json.loads(json.dumps(cut_off.state_dict())))
    assert drawn(resumed, 6) == drawn(uncut, 6)


def test_ranks_share_each_step():
    alone = drawn(TextStream(numbered(9), 4, 5), 5)
    shares = [TextStream(numbered(9), 4, 5, Ranks(rank, 2)) for rank in range(2)]
    steps = [[drawn(share, 1) for share in shares] for _ in range(5)]
    assert [row for one, other in steps for pair in zip(one, other, strict=True) for row in pair] == alone


# ---- files of raw text


def write_text(path: Path, text: str, encoding: str = "utf-8") -> str:
    path.write_bytes(text.encode(encoding))
    return str(path)


def documents(source: str) -> list[str]:
    texts, held = [], ""
    for piece in read_pieces(source):
        held += piece.text
        if piece.ends:
            texts.append(held)
            held = ""
    assert not held
    return texts


def test_lines_of_any_system_separate_documents(tmp_path):
    expected = ["a\nb c", "d\u2028e\x85f"]
    for name, text in {
        "unix": "\n\na\nb c\n\n\n d\u2028e\x85f \n",
        "windows": "a\r\nb c\r\n\r\nd\u2028e\x85f\r\n",
        "spaces": "\ufeffa\nb c\n \t\nd\u2028e\x85f",
    }.items():
        assert documents(write_text(tmp_path / f"{name}.txt", text)) == expected
    rows = [json.dumps({"text": text}, ensure_ascii=False) for text in expected]
    assert documents(write_text(tmp_path / "rows.jsonl", "\n".join(rows))) == expected


@pytest.mark.parametrize("separator", [" ", "\n", ""])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_long_document_comes_in_pieces_and_ends_once(tmp_path, separator, suffix):
    long = separator.join(f"w{number}" for number in range(80_000))
    text = f"{long}\n\nw1" if suffix == ".txt" else "".join(json.dumps({"text": t}) + "\n" for t in (long, "w1"))
    source = write_text(tmp_path / f"long{suffix}", text)
    pieces = list(read_pieces(source))
    assert max(len(piece.text) for piece in pieces) <= 2**17 and len(pieces) > 4
    assert documents(source) == [long, "w1"]
    assert check_texts(source) == (2, 0)


def test_a_long_document_before_much_white_space_still_ends(tmp_path):
    long = "w1 " * 50_000 + " " * 200_000
    source = write_text(tmp_path / "long.txt", f"{long}\n\nw2")
    assert [text.strip() for text in documents(source)] == [long.strip(), "w2"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", b'{"text": "w1"}\n{"text": "w2"}\n{"text": \n', "rows.jsonl, line 3: not valid JSON"),
        ("rows.jsonl", b'{"text": "w1"}\n["w2"]\n', "rows.jsonl, line 2: expected a JSON object, got list"),
        ("rows.jsonl", b'{"text": "w1"}\n{"text": 5}\n', 'rows.jsonl, line 2: expected a string "text", got int'),
        ("rows.jsonl", b'{"text": "w1 \\ud800"}\n', "rows.jsonl, line 1: half of a surrogate pair at character 3"),
        ("rows.jsonl", b'{"text": ""}\n{"text": " \\n"}\n', "rows.jsonl holds no text"),
        ("text.txt", b"w1\n\nw2 \xe9\n", "text.txt, line 3: not UTF-8 text"),
        ("text.txt", b" \n\n \t\n", "text.txt holds no text"),
        ("text.md", b"w1\n", "text.md must be a .txt or .jsonl file"),
    ],
)
@pytest.mark.parametrize("command", ["train-draft", "annotate"])
def test_text_that_cannot_be_read_is_one_line_before_weights(tmp_path, capsys, command, name, content, words):
    folder = write_folder(tmp_path / "models", {"target": make_model(layers=1), "draft": make_model(layers=1)})
    for model in ("target", "draft"):
        (folder / model / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(content)
    given = ["--target", str(folder / "target"), "--text", str(tmp_path / name), "--output", str(tmp_path / "out")]
    if command == "train-draft":
        given += ["--draft", str(folder / "draft"), "--method", "sft", "--prompts", str(folder / "prompts.jsonl")]
    assert words in run_line(capsys, command, *given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--text-block", "9"), "--text-block cuts raw text; name it with --text"),
        (("--text", "x.txt", "--text-block", "0"), "--text-block must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("command", [("annotate",), ("train-draft", "--method", "sft", "--draft", "d")])
def test_a_block_size_that_means_nothing_is_refused(tmp_path, capsys, command, words, message):
    assert message in run_line(capsys, *command, *words, "--target", "t", "--output", str(tmp_path / "out"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A folder with models whose tokenizer writes BOS, and documents of which two are empty."""
    tokenizer = bos_tokenizer("<user> $A")
    models = {"target": make_model(layers=2, tokenizer=tokenizer), "draft": make_model(layers=1, tokenizer=tokenizer)}
    folder = write_folder(tmp_path_factory.mktemp("corpus"), models)
    texts = [" ".join(f"w{(i * k) % 60}" for k in range(1, 40)) for i in range(1, 12)]
    write_rows(folder / "documents.jsonl", [{"text": text} for text in ["", *texts, " \n"]])
    return folder


@pytest.mark.parametrize("method", ["sft", "supervised-kd"])
def test_text_is_trained_on_behind_bos_in_blocks_of_its_own_size(corpus, tmp_path, trained_on, method):
    """Not in blocks of --max-new-tokens, which is 12 here and holds for the held-out answers."""
    text = str(corpus / "documents.jsonl")
    summary = train(corpus, tmp_path / "out", method=method, text=text, text_block=20, steps=4, eval_every=4)
    assert {row.prompt_ids for row in trained_on} == {(BOS,)}
    assert max(len(row.answer_ids) for row in trained_on) == 20
    assert summary.answers_empty == 2 and summary.answers_cut == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"raw text from `{text}`" in card and "left out: 2." in card
    heldout = read_rollouts(tmp_path / "out" / "heldout")
    assert max(len(row["answer_ids"]) for row in heldout) <= 12


def test_blocks_fill_a_short_context_and_never_exceed_it(corpus, tmp_path, trained_on):
    text = str(corpus / "documents.jsonl")
    train(corpus, tmp_path / "out", method="sft", text=text, steps=1, eval_every=1)
    assert max(len(row.prompt_ids + row.answer_ids) for row in trained_on) == 256
    assert block_size(None, 8192, make_tokenizer()) == 512
    with pytest.raises(ConfigError, match="--text-block 256 exceeds the 255 tokens that fit the models' context"):
        train(corpus, tmp_path / "long", method="sft", text=text, text_block=256)
    assert not (tmp_path / "long").exists(), "nothing was written"


def test_a_run_on_text_resumes_bit_for_bit(corpus, tmp_path):
    settings = {"method": "sft", "text": str(corpus / "documents.jsonl"), "text_block": 20}
    settings |= {"steps": 10, "eval_every": 2, "batch_size": 7, "patience": 0}
    train(corpus, tmp_path / "uncut", **settings)

    def stop(step, examples):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_each_step(patch, stop)
        train(corpus, tmp_path / "cut", **settings)
    train(corpus, tmp_path / "cut", **settings, resume=True)
    assert same_weights(tmp_path / "uncut", tmp_path / "cut")
    assert history(tmp_path / "uncut") == history(tmp_path / "cut")


def test_a_saved_data_set_is_read_row_by_row(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["w1", "", "w2 w3"]}).save_to_disk(str(tmp_path / "set"))
    assert documents(str(tmp_path / "set")) == ["w1", "w2 w3"] and check_texts(str(tmp_path / "set")) is None
    datasets.Dataset.from_dict({"text": ["w1", None]}).save_to_disk(str(tmp_path / "holes"))
    with pytest.raises(DataError, match='row 2: expected a string "text", got NoneType'):
        documents(str(tmp_path / "holes"))
    datasets.Dataset.from_dict({"body": ["w1"]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(DataError, match=r"columns \['body'\]; it needs 'text'"):
        check_texts(str(tmp_path / "other"))


# ---- labels of raw text


@pytest.fixture(scope="module")
def labelled(corpus) -> Path:
    text = str(corpus / "documents.jsonl")
    annotate(annotate_config(corpus, corpus / "labels", rollouts=None, text=text, text_block=20, top_k=5))
    return corpus / "labels"


def test_annotate_labels_the_blocks_that_training_would_see(corpus, labelled):
    target = load_model(str(corpus / "target"))
    pieces = read_pieces(str(corpus / "documents.jsonl"))
    expected = list(text_blocks(pieces, target.tokenizer, EOS, 20))
    rows = read_rollouts(labelled)
    assert [tuple(row["answer_ids"]) for row in rows] == [block.answer_ids for block in expected]
    assert {tuple(row["prompt_ids"]) for row in rows} == {(BOS,)}
    store = LabelStore(sorted(labelled.glob("*.parquet")))
    store.place(expected[1], 1)
    labels = store.token_labels(expected[1])
    with torch.no_grad():
        (hidden,) = answer_hidden_states(target, [expected[1]])
        likeliest = target.logits(hidden).float().log_softmax(-1).topk(5)
    assert labels.ids.tolist() == likeliest.indices.flatten().tolist()
    assert torch.allclose(labels.log_probs, likeliest.values.flatten(), atol=5e-3)
    assert {path.name for path in labelled.iterdir() if path.is_dir()} == set(), "the unlabelled blocks are gone"


def test_training_takes_labelled_text_and_holds_blocks_out(corpus, labelled, tmp_path, trained_on):
    summary = train(
        corpus, tmp_path / "out", method="supervised-kd", soft_labels=str(labelled), steps=30, eval_every=10
    )
    rows = {row["prompt_id"] for row in read_rollouts(labelled)}
    trained = {row.prompt_id for row in trained_on}
    assert trained < rows and len(rows) - len(trained) == summary.heldout_prompts == 6
    assert all(row.soft_labels is not None and row.prompt_ids == (BOS,) for row in trained_on)
    assert summary.after["sampled"] > summary.before["sampled"]


def test_a_killed_annotation_of_text_goes_on(corpus, labelled, tmp_path, monkeypatch):
    text = str(corpus / "documents.jsonl")
    config = annotate_config(corpus, tmp_path / "cut", rollouts=None, text=text, text_block=20, top_k=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("specdistill.distill.answers.label_writer.label_rows", interrupt)
        annotate(config)
    with pytest.raises(OutputError, match="--text-block"):
        annotate(config.replace(text_block=21))
    annotate(config)
    assert read_rollouts(tmp_path / "cut") == read_rollouts(labelled)


def test_a_text_that_changed_since_a_kill_is_cut_again(corpus, tmp_path, monkeypatch):
    """The blocks of the old text lay there, and were labelled without a word."""
    text = tmp_path / "text.txt"
    text.write_text("w1 w2 w3 w4")
    config = annotate_config(corpus, tmp_path / "cut", rollouts=None, text=str(text), text_block=20, top_k=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("specdistill.distill.answers.label_writer.label_rows", interrupt)
        annotate(config)
    text.write_text("w5 w6")
    annotate(config)
    assert [row["answer_ids"] for row in read_rollouts(tmp_path / "cut")] == [[10, 11, EOS]]


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_text_and_rollouts_are_not_labelled_together(tmp_path):
    with pytest.raises(ConfigError, match="--text and --rollouts"):
        annotate_config(tmp_path, tmp_path / "out", text="x.txt")
