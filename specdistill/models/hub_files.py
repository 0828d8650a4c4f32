"""Single files of a hub id."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub.errors import HFValidationError
from transformers.utils.hub import cached_file

from specdistill.models.quiet import quiet_hub


def cached(location: str, file: str, *, ask_hub: bool = True) -> Path | None:
    """Finds a file of a hub id on the network or in the local cache.

    Args:
        location: Hub id.
        file: Name of the file.
        ask_hub: Whether the network may be asked.

    Returns:
        None if there is no such file, or if this is no hub id.
    """
    try:
        with quiet_hub():
            found = cached_file(
                location,
                file,
                local_files_only=not ask_hub,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
    except (OSError, HFValidationError):
        return None
    return None if found is None else Path(found)
