"""Prompt files as people have them: line ends, encodings, templates that refuse, tables and compressed files."""

from __future__ import annotations

import csv
import gzip
import json
import time

import datasets
import pytest
from tiny_models import make_tokenizer
from tiny_runs import write_rows

from specdistill.data import Prompt, load_prompts
from specdistill.data.prompts import check_source, encode
from specdistill.data.scorers import exact_match
from specdistill.data.texts import check_texts, read_pieces
from specdistill.errors import DataError, ModelError
from specdistill.servers.client import _lines


def texts_of(source: str) -> list[str]:
    """All documents of a short --text."""
    return [piece.text for piece in read_pieces(source)]


SEPARATORS = "\r\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""Characters at which str.splitlines splits and neither JSON nor a text editor does; open() splits at the first."""
USER, ASSISTANT = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}


def contents(path) -> list[str]:
    return [prompt.messages[0]["content"] for prompt in load_prompts(str(path))]


# ---- line ends


@pytest.mark.parametrize("separator", SEPARATORS)
def test_only_a_line_feed_ends_a_line_of_any_file(tmp_path, separator):
    text = f"w1{separator}w2"
    (tmp_path / "p.txt").write_bytes(f"{text}\r\n{text} w3\n".encode())
    assert contents(tmp_path / "p.txt") == [text, f"{text} w3"]
    # JSON may hold the first and the last five of them only escaped.
    raw = json.dumps({"prompt": text, "text": text}, ensure_ascii=False)
    (tmp_path / "p.jsonl").write_bytes(f"{raw}\r\n{raw}\n".encode())
    assert contents(tmp_path / "p.jsonl") == [text, text]
    assert texts_of(str(tmp_path / "p.jsonl")) == [text, text]
    (tmp_path / "d.txt").write_bytes(f"{text}\r\n\r\nw3".encode())
    assert texts_of(str(tmp_path / "d.txt")) == [text, "w3"]
    events = list(_lines([f"data: {text}\r".encode(), f"\ndata: {text}".encode()]))
    assert events == [f"data: {text}", f"data: {text}"]
    assert exact_match(Prompt("p", (USER,), answer=text), f"thinking\n{text}") == 1


def test_a_character_cut_in_two_by_the_network_is_whole_again():
    event = "data: café\n".encode()
    assert list(_lines([event[:10], event[10:]])) == ["data: café", ""]


def test_a_broken_line_keeps_its_number_behind_a_line_separator(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "a\u2028b"}\n{"prompt"\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not valid JSON"):
        load_prompts(str(tmp_path / "p.jsonl"))


# ---- encodings


@pytest.mark.parametrize(
    ("name", "text"), [("p.jsonl", '{"prompt": "w1"}\n'), ("p.txt", "w1\n"), ("p.csv", "prompt\nw1\n")]
)
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert contents(tmp_path / name) == ["w1"]


def test_half_a_surrogate_pair_is_named_by_line(tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "fine \\ud83d\\ude00"}\n{"messages": [{"role": "user", "content": "\\ud83d"}]}\n'
    )
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: \\ud83d is half a surrogate pair"):
        load_prompts(str(tmp_path / "p.jsonl"))
    (tmp_path / "t.jsonl").write_text('{"text": "\\udc00"}\n')
    with pytest.raises(DataError, match=r"t\.jsonl, line 1: half of a surrogate pair"):
        texts_of(str(tmp_path / "t.jsonl"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "w1", "tools": '[{"name": "\\udc00"}]'},
        {"messages": '[{"role": "user", "content": "\\udc00"}]'},
        {"prompt": "w1", "chat_template_kwargs": '{"a": "\\udc00"}'},
    ],
)
def test_half_a_surrogate_pair_inside_json_text_is_named_by_line(tmp_path, row):
    """The line itself holds none: it is escaped twice. The tokenizer's TypeError was called unexpected."""
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}, row])
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: \\udc00 is half a surrogate pair"):
        load_prompts(str(tmp_path / "p.jsonl"))


def test_half_a_surrogate_pair_that_no_file_holds_is_named_too():
    prompt = Prompt("p", ({"role": "user", "content": "w1 \udc00"},), place="--negative-prompt")
    for template in (None, "{{ messages[0].content }}"):
        with pytest.raises(DataError, match=r"^--negative-prompt: \\udc00 is half a surrogate pair"):
            encode(prompt, refusing(template))


def test_a_wrong_encoding_is_named_by_line(tmp_path):
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "w1"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 2: not UTF-8 text \(byte 32\)"):
        load_prompts(str(tmp_path / "p.jsonl"))


# ---- ids


def test_a_repeated_id_is_found_in_linear_time_and_named_with_both_lines(tmp_path):
    rows = [{"id": str(number), "prompt": "w1"} for number in range(40_000)]
    write_rows(tmp_path / "p.jsonl", [*rows, {"id": "39999", "prompt": "w2"}])
    start = time.process_time()
    with pytest.raises(
        DataError, match=r"line 40001: the id '39999' occurs more than once \(first at .*, line 40000\)"
    ):
        load_prompts(str(tmp_path / "p.jsonl"))
    assert time.process_time() - start < 10, "it took 42 s when every id was counted"


def test_an_id_or_category_of_null_is_none(tmp_path):
    write_rows(tmp_path / "p.jsonl", [{"id": None, "category": None, "prompt": "w1"}] * 2)
    assert [(one.id, one.category) for one in load_prompts(str(tmp_path / "p.jsonl"))] == [("1", "all"), ("2", "all")]


# ---- templates


def refusing(template):
    tokenizer = make_tokenizer()
    tokenizer.name_or_path, tokenizer.chat_template = "tiny", template
    return tokenizer


def test_a_template_that_refuses_a_row_is_quoted_with_its_line(tmp_path):
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}w1"
    write_rows(tmp_path / "p.jsonl", [{"prompt": "w1"}, {"messages": [{"role": "system", "content": "w2"}, USER]}])
    first, second = load_prompts(str(tmp_path / "p.jsonl"))
    assert encode(first, refusing(no_system))
    text = r"p\.jsonl, line 2: the chat template of tiny refuses the prompt: System role not supported"
    with pytest.raises(DataError, match=text):
        encode(second, refusing(no_system))
    with pytest.raises(DataError, match=r"line 1: the chat template of tiny refuses the prompt: .*NoneType"):
        encode(first, refusing("{{ messages[0].content + messages[0].nothing | default(none) }}"))


def test_templates_that_no_prompt_can_use_are_named_by_their_model():
    prompt = Prompt("p", (USER,))
    with pytest.raises(ModelError, match="tiny has the chat templates rag, tool_use but no default"):
        encode(prompt, refusing({"rag": "w1", "tool_use": "w2"}))
    with pytest.raises(ModelError, match=r"tiny: its chat template is no valid Jinja, line 2: '{% if %}'"):
        encode(prompt, refusing("w1\n{% if %}"))


# ---- tables and compressed files

ROWS = [
    {"id": "a", "prompt": 'w1, "w2"\nw3', "answer": "w4", "category": "one"},
    {"id": "b", "prompt": "w5\u2028w6", "answer": "w7", "category": "two"},
]


def write_as(path, rows):
    suffix = path.name.split(".", 1)[1]
    if suffix == "parquet":
        datasets.Dataset.from_list(rows).to_parquet(str(path))
        return
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if suffix.startswith("json") and not suffix.startswith("jsonl"):
        text = json.dumps(rows, indent=1, ensure_ascii=False)
    if suffix.startswith("csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        text = path.read_bytes().decode()
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith(".gz") else text.encode())


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "json.gz", "csv.gz"])
def test_every_format_holds_the_same_prompts(tmp_path, suffix):
    write_as(tmp_path / f"p.{suffix}", ROWS)
    check_source(str(tmp_path / f"p.{suffix}"))
    found = load_prompts(str(tmp_path / f"p.{suffix}"))
    expected = [
        Prompt(row["id"], ({"role": "user", "content": row["prompt"]},), row["category"], row["answer"]) for row in ROWS
    ]
    assert found == expected


@pytest.mark.parametrize("suffix", ["json", "parquet", "csv"])
def test_chat_rows_of_tables_lose_the_gaps_and_keep_the_calls(tmp_path, suffix):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w7"}}]}
    turns = [USER, call, {"role": "tool", "content": "w3"}, ASSISTANT]
    rows = [{"messages": turns}, {"messages": [USER, ASSISTANT]}]
    if suffix == "csv":
        rows = [{"messages": json.dumps(row["messages"])} for row in rows]
    write_as(tmp_path / f"p.{suffix}", rows)
    first, second = load_prompts(str(tmp_path / f"p.{suffix}"))
    assert list(first.messages) == turns[:3] and first.answer == "w2"
    assert second.messages == (USER,) and "tool_calls" not in second.messages[0]


def test_a_json_file_of_one_object_a_line_is_read_too(tmp_path):
    write_rows(tmp_path / "p.json", [{"prompt": "w1"}, {"prompt": "w2"}])
    assert contents(tmp_path / "p.json") == ["w1", "w2"]


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "jsonl.gz", "csv.gz"])
def test_a_bad_row_of_a_table_is_named_by_file_and_row(tmp_path, suffix):
    write_as(tmp_path / f"p.{suffix}", [ROWS[0], ROWS[1] | {"prompt": " "}])
    place = "line" if suffix.startswith("jsonl") else "row"
    with pytest.raises(DataError, match=rf"p\.{suffix}, {place} 2: needs a non-empty"):
        load_prompts(str(tmp_path / f"p.{suffix}"))


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("p.json", b'[{"prompt": "w1"},\n {"prompt": ]', r"p\.json, line 2: not valid JSON"),
        ("p.json", b'[{"prompt": "w1"}, 3]', r"p\.json, row 2: expected a JSON object, got int"),
        ("p.csv", b"prompt,id\nw1,a,b\n", r"p\.csv, row 1: more cells than the header"),
        ("p.csv", b'prompt\n"w1\n', r"p\.csv, line 1: not valid CSV \(a quote is never closed\)"),
        ("p.parquet", b"nothing of the sort", r"p\.parquet can't be read as parquet"),
        ("p.jsonl.gz", b"not compressed", r"p\.jsonl\.gz is no complete gzip file"),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "w1"}', mtime=0)[:-9], r"p\.jsonl\.gz is no complete gzip file"),
    ],
)
def test_a_damaged_table_is_one_clear_line(tmp_path, capfd, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=text):
        load_prompts(str(tmp_path / name))
    assert capfd.readouterr().err == "", "nothing beside the error"


def test_a_missing_table_is_said_before_a_name_is_looked_up(tmp_path):
    for name in ("p.parquet", "p.json", "p.csv.gz"):
        with pytest.raises(DataError, match=f"prompts file {name} does not exist"):
            check_source(name)


def test_documents_are_read_from_tables_too(tmp_path):
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfw1\r\n\r\nw2\n"))
    assert texts_of(str(tmp_path / "d.txt.gz")) == ["w1", "w2"]
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"w1\n\nw2 \xe9\n"))
    with pytest.raises(DataError, match=r"d\.txt\.gz, line 3: not UTF-8 text"):
        texts_of(str(tmp_path / "d.txt.gz"))
    (tmp_path / "d.txt.gz").write_bytes(gzip.compress(b"w1\n\nw2\n", mtime=0)[:-9])
    with pytest.raises(DataError, match=r"d\.txt\.gz is no complete gzip file"):
        texts_of(str(tmp_path / "d.txt.gz"))
    with pytest.raises(DataError, match=r"--text absent\.parquet does not exist"):
        check_texts("absent.parquet")
    write_as(tmp_path / "d.parquet", [{"text": "w1"}, {"text": "w2"}])
    write_as(tmp_path / "d.jsonl.gz", [{"text": "w1"}, {"text": "w2"}])
    assert texts_of(str(tmp_path / "d.parquet")) == texts_of(str(tmp_path / "d.jsonl.gz")) == ["w1", "w2"]
