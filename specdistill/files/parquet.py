"""Reads and writes rows in parquet files, which hold answers and rejections.

Imports no torch, because a serving loop uses it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specdistill.errors import DataError, first_line
from specdistill.files import atomic

Row = dict[str, Any]
"""One row as pyarrow gives it: column name -> number, string, list, dict or None."""


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes a file; a crash leaves either the whole file or none.

    Args:
        path: The file.
        rows: Column name -> value for each row: numbers, strings, lists, dicts, arrays or None.

    Raises:
        OutputError: The disk is full, or the folder can't be written.
    """
    atomic.write_with(path, lambda temporary: _write(temporary, rows))


def read(path: Path, *columns: str) -> list[Row]:
    """Reads all rows of a file.

    Args:
        path: The file.
        *columns: Columns to read; those that the file lacks are left out, none named reads all.

    Raises:
        DataError: The file is damaged.
        FileNotFoundError: The file does not exist. A log that keeps its newest files may have removed it.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            return file.read([name for name in columns if name in names] or None).to_pylist()
    except FileNotFoundError:
        raise
    except Exception as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); remove it") from error


def num_rows(path: Path) -> int:
    """Counts the rows of a file without reading them.

    Raises:
        DataError: The file is damaged.
    """
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_metadata(path).num_rows
    except Exception as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); remove it") from error


def warm_up() -> None:
    """Makes the imports of a first write now, since some of them fail while the interpreter shuts down."""
    _write(io.BytesIO(), [{"ids": [1]}])


def _write(destination: Path | io.BytesIO, rows: Sequence[Mapping[str, object]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), destination)
