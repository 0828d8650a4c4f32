"""Settings of the run that made a directory, kept in it. They decide whether a later run may continue there."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from specdistill.errors import DataError, OutputError, first_line
from specdistill.files import atomic

CONFIG_FILE = "specdistill.yaml"
"""Name of the settings file inside an output directory."""

PROMPTS_FILE = "prompts.sha256"
"""Name of the file with a hash of a run's prompts: a resumed run must have the same ones."""

SUMMARY_FILE = "summary.json"
"""Name of the file with a run's result, which only a finished run has."""

CARD_FILE = "README.md"
"""Name of the model card, which a run writes when it ends or is interrupted."""

ADAPTERS_FILE = "adapters.json"
"""Name of the file that names a run's adapters and their bases by content; there is none for whole models."""

FlatSettings = dict[str, Any]
"""Flat name of each setting -> its value, as YAML holds it."""


def write(output: Path, settings: FlatSettings) -> None:
    """Writes the settings as YAML, which --config reads.

    Raises:
        OutputError: The disk is full, or the directory can't be written.
    """
    atomic.write_text(output / CONFIG_FILE, yaml.safe_dump(settings, sort_keys=False))


def exists(output: Path) -> bool:
    """Whether the directory holds settings, so that one of our commands made it."""
    return (output / CONFIG_FILE).is_file()


def read(output: Path) -> FlatSettings:
    """Reads the settings that `write` wrote; empty where the file holds no mapping.

    Raises:
        DataError: The file is damaged, or can't be read.
    """
    path = output / CONFIG_FILE
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} can't be read as settings ({first_line(error)}); mend or remove it") from error
    return content if isinstance(content, dict) else {}


def copy(source: Path, output: Path) -> None:
    """Takes the settings along where a directory's content is written elsewhere; does nothing where there are none."""
    if exists(source):
        atomic.write_text(output / CONFIG_FILE, (source / CONFIG_FILE).read_text())


def changed_flags(output: Path, settings: FlatSettings) -> str:
    """Names the flags whose values differ from those in the directory, joined for a message.

    Args:
        output: A directory with settings.
        settings: The new values.

    Returns:
        "--seed, --temperature", say; empty if no value differs.
    """
    before = read(output)
    changed = [name for name, value in settings.items() if before.get(name) != value]
    return ", ".join(f"--{name.replace('_', '-')}" for name in changed)


def claim(output: Path, settings: FlatSettings, content: str) -> None:
    """Makes the output directory, or checks that a run with these settings may continue there.

    Args:
        output: The directory.
        settings: The settings that decide what the shards hold.
        content: What the shards hold, such as "answers", for the message.

    Raises:
        OutputError: The directory holds something else, or shards made with other settings.
    """
    if not exists(output):
        atomic.claim_output_directory(output)
    elif any(output.rglob("*.parquet")):
        flags = changed_flags(output, settings)
        if flags:
            raise OutputError(f"{output} holds {content} made with another {flags}; choose another --output")


def adapters_of(output: Path) -> dict[str, str]:
    """Role -> label of each adapter of the run that made a directory; empty where it had whole models."""
    path = output / ADAPTERS_FILE
    try:
        content = json.loads(path.read_text()) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path} can't be read ({first_line(error)}); mend or remove it") from error
    return content if isinstance(content, dict) else {}


def check_adapters(output: Path, labels: Mapping[str, str]) -> None:
    """Refuses to go on in a directory that was made with another adapter or base, or another state of them.

    Args:
        output: A directory with results of a run.
        labels: Role -> label of each adapter of this run.

    Raises:
        OutputError: They differ.
    """
    before = adapters_of(output)
    for role in sorted(before.keys() | labels.keys()):
        if before.get(role) != labels.get(role):
            raise OutputError(
                f"{output} was made with the --{role} {before.get(role, 'that was no adapter')}, now it is "
                f"{labels.get(role, 'no adapter')}; choose another --output, or restore the adapter and its base"
            )


def keep_adapters(output: Path, labels: Mapping[str, str]) -> None:
    """Keeps what `check_adapters` compares."""
    if labels:
        atomic.write_text(output / ADAPTERS_FILE, json.dumps(labels, indent=1) + "\n")


def claim_run(
    output: Path, settings: FlatSettings, resume: bool, may_change: Collection[str], finished: str, prompts: str
) -> None:
    """Makes the output directory of a run, or proves that the run in it is this one and may go on.

    Args:
        output: The directory.
        settings: All settings of the run.
        resume: Whether to go on with a run that is there.
        may_change: Settings that may differ from those of the run.
        finished: File that a finished run has.
        prompts: Hash of the run's prompts.

    Raises:
        OutputError: The directory holds something else, a finished run, or one of other settings or prompts.
    """
    if not resume and (output / PROMPTS_FILE).is_file() and not (output / finished).exists():
        atomic.claim_output_directory(
            output, "the run in it did not end: add --resume to go on with it, or choose another --output"
        )
    if not (resume and exists(output)):
        atomic.claim_output_directory(output)
        return
    if (output / finished).exists():
        raise OutputError(f"the run in {output} has ended; there is nothing to resume")
    flags = changed_flags(output, {name: value for name, value in settings.items() if name not in may_change})
    if flags:
        own = output / CONFIG_FILE
        raise OutputError(f"the run in {output} has another {flags}; resume it with --config {own} --resume")
    # Runs of older versions have no such file.
    if (output / PROMPTS_FILE).is_file() and (output / PROMPTS_FILE).read_text().strip() != prompts:
        raise OutputError(
            f"{settings['prompts']} has changed since the run in {output} began; restore its prompts to resume, or "
            "start again with another --output"
        )
