"""Raw text as a stream, for distillation as in pre-training: no prompts, no answers, memory that does not grow."""

from __future__ import annotations

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from specdistill.data.readers import Record, format_of, load_split, read_records
from specdistill.errors import DataError, first_line

_PIECE = 2**16
"""Characters of a piece: longer documents come in several, cut at white space."""


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    ends: bool = True
    """Whether the document ends with it."""


class TextCounts(NamedTuple):
    """Documents of a source."""

    documents: int
    """With text."""
    empty: int
    """Without, which are left out."""


def check_texts(source: str) -> TextCounts | None:
    """Reads files from beginning to end, before anything is loaded; of a data set only the first row.

    Args:
        source: As in `read_pieces`.

    Returns:
        What a file holds; None for a data set.

    Raises:
        DataError: The source is missing, empty or malformed. Errors name a broken line by its number.
    """
    path = Path(source)
    if not path.exists() and (format_of(path) or source.startswith((".", "/", "~"))):
        raise DataError(f"--text {source} does not exist")
    if not path.is_file():
        next(read_pieces(source))
        return None
    found, empty, inside = 0, 0, False
    for text, ends in _documents(source):
        if ends and (text or inside):
            found += 1
        elif ends:
            empty += 1
        inside = not ends
    if not found:
        raise DataError(f"--text {source} holds no text")
    return TextCounts(found, empty)


def read_pieces(source: str) -> Iterator[Piece]:
    """Reads documents from a .txt file (blank lines between them), a .jsonl file or a datasets name[:split] (field
    text). Documents of white space alone are left out.

    Raises:
        DataError: The source is missing, empty or malformed. Errors name a broken line by its number.
    """
    found, inside = False, False
    for piece in _documents(source):
        # The last piece of a long document may be empty: it still ends the document.
        if piece.text or inside:
            found = True
            yield piece
        inside = not piece.ends
    if not found:
        raise DataError(f"--text {source} holds no text")


def _documents(source: str) -> Iterator[Piece]:
    """All documents in pieces; one without text is a single empty piece."""
    path = Path(source)
    if not path.is_file():
        documents = _dataset(source)
    elif format_of(path) == ".txt":
        yield from _read(path, _paragraphs)
        return
    elif path.suffix == ".jsonl":
        documents = _read(path, lambda file: _json_lines(file, source))
    elif format_of(path):
        documents = (_text(record, place) for place, record in read_records(path))
    else:
        raise DataError(f"--text {source} must be a .txt or .jsonl file, got {path.suffix or 'no suffix'!r}")
    for text in documents:
        yield from _cut(text) if text.strip() else [Piece("")]


def _read(path: Path, parse):
    """Yields what `parse` finds in an open file; errors name the file."""
    try:
        # Lines end at \n or \r\n only: universal newlines would also end them at a lone \r.
        with _open(path)(path, "rt", encoding="utf-8-sig", newline="\n") as file:
            yield from parse(file)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no complete gzip file ({first_line(error)}); compress it again") from error
    except UnicodeDecodeError as error:
        place = f"--text {path}, line {_undecodable_line(path)}"
        raise DataError(f"{place}: not UTF-8 text ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def _open(path: Path) -> Any:
    return gzip.open if path.suffix == ".gz" else open


def _undecodable_line(path: Path) -> int:
    """Number of the first line that is not UTF-8: a stream's own error counts from the part that was read last."""
    with _open(path)(path, "rb") as file:
        return 1 + sum(1 for _ in itertools.takewhile(_decodes, file))


def _decodes(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _paragraphs(file: TextIO) -> Iterator[Piece]:
    """Documents between blank lines, without white space around them."""
    held, inside, at_line_start = "", False, True
    while line := file.readline(_PIECE):
        whole = line.endswith("\n")
        if at_line_start and whole and not line.strip():
            if held.strip() or inside:
                yield Piece(held.rstrip())
            held, inside = "", False
        else:
            held += line.replace("\r\n", "\n") if held or inside else line.replace("\r\n", "\n").lstrip()
            if len(held) > 2 * _PIECE:
                *pieces, (held, _) = _cut(held)
                inside = True
                yield from pieces
        at_line_start = whole
    if held.strip() or inside:
        yield Piece(held.rstrip())


def _json_lines(file: TextIO, source: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"--text {source}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield _text(record, place)


def _text(record: Record, place: str) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise DataError(f'{place}: expected a string "text", got {type(text).__name__}; fix or remove the line')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"half of a surrogate pair at character {error.start}"
        raise DataError(f"{place}: {problem}; fix or remove the line") from error
    return text


def _cut(text: str) -> Iterator[Piece]:
    """A document in pieces; white space between two belongs to the second."""
    start = 0
    while len(text) - start > _PIECE:
        end = start + _PIECE
        space = max(text.rfind(" ", start + 1, end), text.rfind("\n", start + 1, end))
        end = space if space > start else end
        yield Piece(text[start:end], False)
        start = end
    yield Piece(text[start:])


def _dataset(source: str) -> Iterator[str]:
    try:
        rows = load_split(source) if Path(source.partition(":")[0]).is_dir() else _streamed(source)
        columns = rows.column_names
        if columns is not None and "text" not in columns:
            raise DataError(f"--text {source}: the data set has columns {columns}; it needs 'text'")
        for number, row in enumerate(rows, start=1):
            yield _text(dict(row), f"--text {source}, row {number}")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"can't load --text {source!r}: {first_line(error)}") from error


def _streamed(source: str):
    """A data set of the hub, row by row as it comes."""
    import datasets

    name, _, split = source.partition(":")
    return datasets.load_dataset(name, split=split or "train", streaming=True)
