"""The settings that a directory was made with, beside what was made: they decide whether a run may go on there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from specdistill import atomic_files

CONFIG_FILE = "specdistill.yaml"


def write(output: Path, settings: dict[str, Any]) -> None:
    """Writes them as YAML, which --config reads."""
    atomic_files.write_text(output / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))


def exists(output: Path) -> bool:
    """Whether the directory has settings, and so is one of ours."""
    return (output / CONFIG_FILE).is_file()


def changed_flags(output: Path, settings: dict[str, Any]) -> str:
    """The flags whose values differ from those written there, joined for a message; empty where none does."""
    before = yaml.safe_load((output / CONFIG_FILE).read_text())
    changed = [key for key, value in settings.items() if not isinstance(before, dict) or before.get(key) != value]
    return ", ".join(f"--{key.replace('_', '-')}" for key in changed)
