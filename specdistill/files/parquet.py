"""Rows in parquet files, as rollouts and rejections are kept. Imports no torch: a serving loop uses it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from specdistill.errors import DataError
from specdistill.files import atomic


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a file whole or not at all.

    Raises:
        OutputError: The disk is full, or the folder can't be written.
    """
    atomic.write_with(path, lambda temporary: _write(temporary, rows))


def read(path: Path) -> list[dict[str, Any]]:
    """All rows of a file.

    Raises:
        DataError: It is damaged.
        FileNotFoundError: It is not there: a log may have rotated it away.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise DataError(f"{path} can't be read ({str(error).splitlines()[0]}); remove it") from error


def warm_up() -> None:
    """Makes the imports of a first write, some of which an interpreter that is ending refuses."""
    _write(io.BytesIO(), [{"ids": [1]}])


def _write(where: Path | io.BytesIO, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), where)
