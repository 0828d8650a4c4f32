"""Reads text files, tables and data sets; errors name the file, the line or row, and the remedy."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdistill.errors import DataError, first_line

Record = dict[str, Any]
"""One object of a JSONL file or one row of a data set: field -> value, not checked yet."""

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
"""Suffixes of the files that are read; all but .parquet may be compressed (.gz)."""
_LONGEST_CELL = 2**31 - 1


def format_of(path: Path) -> str | None:
    """Suffix that says what a file holds, without .gz; None if it is not one of `FORMATS`."""
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    return suffix if suffix in FORMATS and (suffix, path.suffix) != (".parquet", ".gz") else None


def read_text(path: Path) -> str:
    r"""Returns the text of a UTF-8 file without its byte order mark; lines end at \n.

    Raises:
        DataError: The file can't be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is no complete gzip file ({first_line(error)}); compress it again") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error
    content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error


def read_lines(path: Path) -> list[str]:
    r"""Returns the lines of a UTF-8 file. They end at \n or \r\n only: JSON and prose may hold U+2028 and the like.

    Raises:
        DataError: The file can't be read, or has another encoding.
    """
    return read_text(path).split("\n")


def read_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the objects of a .jsonl, .json, .csv or .parquet file, each with its place for messages.

    Raises:
        DataError: The file can't be read, or a row of it is no object.
    """
    kind = format_of(path)
    if kind == ".parquet":
        return _read_parquet(path)
    if kind == ".csv":
        return _read_csv(path)
    if kind == ".json" and read_text(path).lstrip().startswith("["):
        return _read_array(path)
    return read_jsonl(path)


def read_jsonl(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the objects of a JSONL file, each with its place ("FILE, line 3") for messages. Blank lines are skipped.

    Raises:
        DataError: A line is not a JSON object, or holds half a surrogate pair.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
        yield place, _object(record, place)


def _read_array(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        records = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); fix the line") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    for number, record in enumerate(records, start=1):
        yield f"{path}, row {number}", _object(record, f"{path}, row {number}")


def _object(record: Any, place: str) -> Record:
    """Checks what JSON can hold and no tokenizer reads."""
    if not isinstance(record, dict):
        raise DataError(f"{place}: expected a JSON object, got {type(record).__name__}")
    check_characters(json.dumps(record, ensure_ascii=False), place)
    return record


def check_characters(text: str, place: str) -> None:
    """Refuses a text with half a surrogate pair, which JSON can write and no tokenizer reads.

    Args:
        text: The text, or a value as JSON.
        place: Where it is, for the message.

    Raises:
        DataError: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise DataError(f"{place}: {half} is half a surrogate pair and no character; fix or remove the line") from error


def _read_csv(path: Path) -> Iterator[tuple[str, Record]]:
    """Reads every cell as text; an empty cell is a missing field."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline="\n"), strict=True)
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise DataError(f"{path}, row {number}: more cells than the header; quote cells that hold a comma")
            yield f"{path}, row {number}", {name: cell for name, cell in row.items() if cell}
    except csv.Error as error:
        reason = "a quote is never closed" if "end of data" in str(error) else str(error)
        raise DataError(f"{path}, line {reader.line_num}: not valid CSV ({reason}); fix the line") from error
    finally:
        csv.field_size_limit(limit)


def _read_parquet(path: Path) -> Iterator[tuple[str, Record]]:
    import datasets

    # It logs a damaged file next to raising its error.
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # Streaming writes no copy of the file to a cache.
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{path}, row {number}", without_gaps(row)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} can't be read as parquet: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def without_gaps(row: Any) -> Any:
    """Undoes what a table does to a row: it gives each object the keys of all others, without values.

    A turn's content stays where it is null, because templates look at it. Dates become text, as JSON has them.
    """
    if isinstance(row, dict):
        kept = {name: value for name, value in row.items() if value is not None or name == "content"}
        return {name: without_gaps(value) for name, value in kept.items()}
    if isinstance(row, list | tuple):
        return [without_gaps(value) for value in row]
    return row if row is None or isinstance(row, str | int | float | bool) else str(row)


def load_split(source: str):
    """Loads one split of a data set with the `datasets` package.

    Args:
        source: A folder that `save_to_disk` wrote or a name that `load_dataset` knows, then optionally `:split`.
            The default split is train.

    Returns:
        A `datasets.Dataset`. Errors are those of `datasets`: a caller knows which flag to name.
    """
    import datasets

    name, _, split = source.partition(":")
    if not Path(name).is_dir():
        return datasets.load_dataset(name, split=split or "train")
    loaded = datasets.load_from_disk(name)
    return loaded[split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
