"""Reasons why a model's configuration or tokenizer can't be loaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from huggingface_hub.errors import LocalEntryNotFoundError

from specdistill.errors import first_line
from specdistill.files import checkpoint_files


def why_not(error: Exception, location: str, name: str, role: str) -> str:
    """Says why configuration or tokenizer can't be loaded, with the remedy for that cause."""
    directory = Path(location)
    if "trust_remote_code" in str(error):
        return (
            f"--{role} {name} needs Python code from its own files (auto_map in its JSON files), which is never run; "
            "name a checkpoint of an architecture and a tokenizer that transformers has"
        )
    if directory.is_dir():
        only_pieces = (directory / "tokenizer.model").is_file() and not (directory / "tokenizer.json").is_file()
        if only_pieces and importlib.util.find_spec("sentencepiece") is None:
            needed = "pip install sentencepiece protobuf"
            return f"--{role} {name} holds its tokenizer as tokenizer.model, which needs: {needed}"
        return f"can't load --{role} {name}: {first_line(error)}; check the JSON and tokenizer files in the directory"
    return f"can't load --{role} {name}: {checkpoint_files.why_no_files(location, error)}"


def out_of_reach(error: BaseException | None) -> bool:
    """Whether the hub could not be asked, by the error or what caused it."""
    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__
    return error is not None
