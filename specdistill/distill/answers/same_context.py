"""The text that only the target saw, kept beside answers and labels, and compared when those are used again."""

from __future__ import annotations

import json
from pathlib import Path

from specdistill.data.target_context import TargetContext
from specdistill.distill.answers.same_chat import settings_home
from specdistill.errors import DataError
from specdistill.files import atomic
from specdistill.settings.target_context import FLAGS

CONTEXT_FILE = "target_context.json"
"""Name of the file inside an output directory; there is none where the target saw no more than the draft."""


def write_context(output: Path, context: TargetContext) -> None:
    """Keeps the context in an output directory.

    Raises:
        OutputError: The disk is full.
    """
    if not context.is_empty:
        atomic.write_text(output / CONTEXT_FILE, context.to_text())


def check_same_context(flag: str, directory: Path, context: TargetContext, *, or_none: bool = False) -> None:
    """Compares the context of the run that wrote a directory with this run's; needs no model.

    Args:
        flag: Flag that names the directory, for the message.
        directory: Answers or labels.
        context: What this run's target sees.
        or_none: Whether answers of a target that saw nothing more will do.

    Raises:
        DataError: They were made with another one.
    """
    path = settings_home(directory) / CONTEXT_FILE
    theirs = path.read_text(encoding="utf-8") if path.is_file() else None
    if theirs is None and or_none:
        return
    if theirs != (None if context.is_empty else context.to_text()):
        seen = "saw no more than the draft" if theirs is None else f"saw what {path} holds ({_flags(theirs)})"
        raise DataError(
            f"{flag} {directory} was made by a target that {seen}, which is not what this run's {FLAGS} say; set these "
            "flags as they were, or make it again"
        )


def _flags(text: str) -> str:
    content = json.loads(text)
    return ", ".join(f"--target-{name}" for name in ("system", "examples", "hint") if content.get(name))
