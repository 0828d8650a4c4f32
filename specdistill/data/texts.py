"""Raw text, for distillation as in pre-training: no prompts, no answers."""

from __future__ import annotations

from pathlib import Path

from specdistill.data.readers import Record, format_of, load_split, read_records, read_text
from specdistill.errors import DataError, first_line


def check_texts(source: str) -> None:
    """Finds a missing file before anything is loaded.

    Raises:
        DataError: `source` looks like a path and does not exist.
    """
    path = Path(source)
    if not path.exists() and (path.suffix in (".txt", ".jsonl") or source.startswith((".", "/", "~"))):
        raise DataError(f"--text {source} does not exist")


def load_texts(source: str) -> list[str]:
    """Reads documents from a .txt file (split at blank lines), a .jsonl file (field text) or a datasets name[:split].

    Raises:
        DataError: The source is missing, empty or malformed. Errors name a broken JSONL line by its number.
    """
    check_texts(source)
    path = Path(source)
    if path.is_file() and format_of(path) == ".txt":
        texts = [document.strip() for document in read_text(path).split("\n\n")]
    elif path.is_file() and format_of(path):
        texts = [_text(record, place) for place, record in read_records(path)]
    elif path.is_file():
        raise DataError(f"--text {source} must be a .txt or .jsonl file, got {path.suffix or 'no suffix'!r}")
    else:
        texts = _dataset(source)
    texts = [text for text in texts if text]
    if not texts:
        raise DataError(f"--text {source} holds no text")
    return texts


def _text(record: Record, place: str) -> str:
    text = record.get("text")
    if not isinstance(text, str):
        raise DataError(f'{place}: expected a string "text", got {type(text).__name__}; fix or remove the line')
    return text


def _dataset(source: str) -> list[str]:
    try:
        rows = load_split(source)
        if "text" not in rows.column_names:
            raise DataError(f"--text {source}: the data set has columns {rows.column_names}; it needs 'text'")
        return [str(text) for text in rows["text"]]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"can't load --text {source!r}: {first_line(error)}") from error
