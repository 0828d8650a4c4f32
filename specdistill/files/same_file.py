"""Two names of one file or directory."""

from __future__ import annotations

from pathlib import Path


def is_same_file(one: str, other: str) -> bool:
    """Whether both names lead to the same file or directory, by links too; False where one does not exist."""
    return Path(one).exists() and Path(other).exists() and Path(one).samefile(other)
