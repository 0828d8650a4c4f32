"""Raw text, for distillation as in pre-training: no prompts, no answers."""

from __future__ import annotations

import json
from pathlib import Path

from specdistill.data.prompts import read_text
from specdistill.errors import DataError


def check_texts(source: str) -> None:
    """Finds a missing file before anything is loaded.

    Raises:
        DataError: With the remedy.
    """
    path = Path(source)
    if not path.exists() and (path.suffix in (".txt", ".jsonl") or source.startswith((".", "/", "~"))):
        raise DataError(f"--text {source} does not exist")


def load_texts(source: str) -> list[str]:
    """Documents of a .txt file (parted by blank lines), a .jsonl file (field text) or a datasets name[:split].

    Raises:
        DataError: Missing, empty or malformed; a broken JSONL line is named by its number.
    """
    check_texts(source)
    path = Path(source)
    if path.is_file() and path.suffix == ".txt":
        texts = [part.strip() for part in read_text(path).split("\n\n")]
    elif path.is_file() and path.suffix == ".jsonl":
        texts = [_text(line, path, number) for number, line in enumerate(read_text(path).splitlines(), start=1)]
    elif path.is_file():
        raise DataError(f"--text {source} must be a .txt or .jsonl file, got {path.suffix or 'no suffix'!r}")
    else:
        texts = _dataset(source)
    texts = [text for text in texts if text]
    if not texts:
        raise DataError(f"--text {source} holds no text")
    return texts


def _text(line: str, path: Path, number: int) -> str:
    if not line.strip():
        return ""
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f'{path}, line {number}: expected an object with a string "text"; fix or remove it') from error
    if not isinstance(text, str):
        raise DataError(f'{path}, line {number}: "text" must be a string, got {type(text).__name__}')
    return text


def _dataset(source: str) -> list[str]:
    import datasets

    name, _, split = source.partition(":")
    try:
        loaded = (
            datasets.load_from_disk(name)
            if Path(name).is_dir()
            else datasets.load_dataset(name, split=split or "train")
        )
        rows = loaded[split or "train"] if isinstance(loaded, datasets.DatasetDict) else loaded
        return [str(text) for text in rows["text"]]  # pyright: ignore[reportCallIssue, reportArgumentType, reportIndexIssue]
    except KeyError as error:
        raise DataError(f"--text {source}: the data set needs a field text") from error
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"can't load --text {source!r}: {reason}") from error
