"""Reads text files, JSONL files and data sets; errors name the file, the line and the remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specdistill.errors import DataError

Record = dict[str, Any]
"""One object of a JSONL file or one row of a data set: field -> value, not checked yet."""


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file.

    Raises:
        DataError: The file can't be read, or has another encoding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def read_jsonl(path: Path) -> Iterator[tuple[str, Record]]:
    """Yields the objects of a JSONL file, each with its place ("FILE, line 3") for messages. Blank lines are skipped.

    Raises:
        DataError: A line is not a JSON object.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{place}: not valid JSON ({error}); fix or remove the line") from error
        if not isinstance(record, dict):
            raise DataError(f"{place}: expected a JSON object, got {type(record).__name__}")
        yield place, record


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
