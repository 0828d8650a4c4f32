"""The settings that a directory was made with, beside what was made: they decide whether a run may go on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from specdistill.errors import OutputError
from specdistill.files import atomic

CONFIG_FILE = "specdistill.yaml"


def write(output: Path, settings: dict[str, Any]) -> None:
    """Writes them as YAML, which --config reads."""
    atomic.write_text(output / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))


def exists(output: Path) -> bool:
    """Whether the directory has settings, and so is one of ours."""
    return (output / CONFIG_FILE).is_file()


def read(output: Path) -> dict[str, Any]:
    """The settings there."""
    return yaml.safe_load((output / CONFIG_FILE).read_text())


def changed_flags(output: Path, settings: dict[str, Any]) -> str:
    """The flags whose values differ from those written there, joined for a message; empty where none does."""
    before = read(output)
    changed = [key for key, value in settings.items() if not isinstance(before, dict) or before.get(key) != value]
    return ", ".join(f"--{key.replace('_', '-')}" for key in changed)


def claim(output: Path, settings: dict[str, Any], what: str) -> None:
    """Makes the directory, or proves that it is one of the same command's, whose shards may be gone on with.

    Args:
        output: The directory.
        settings: Those that decide what the shards hold.
        what: They hold, for the message.

    Raises:
        OutputError: It holds something else, or shards made with other settings.
    """
    if not exists(output):
        atomic.claim_output_directory(output)
    elif any(output.rglob("*.parquet")):
        flags = changed_flags(output, settings)
        if flags:
            raise OutputError(f"{output} holds {what} made with another {flags}; choose another --output")
