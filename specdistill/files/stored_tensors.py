"""Names, shapes and places of a checkpoint's tensors, from safetensors headers and the index. Reads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files import checkpoint_files

_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors itself refuses more."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor, as its file's header describes it."""

    file: str
    """Name of the file that holds it."""
    shape: tuple[int, ...] = ()
    """Shape; empty where only the index is here."""
    dtype: str = ""
    """Number format in safetensors' spelling, such as BF16; empty where only the index is here."""

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def weight_shards(directory: Path, role: str) -> list[str]:
    """Names of the files that loaders read, in order: model.safetensors, or those of the index.

    Raises:
        ModelError: There are several files and no index, or the index can't be read.
    """
    if (directory / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = directory / checkpoint_files.SHARD_INDEX
    if index.is_file():
        return sorted(set(checkpoint_files.weight_map(index, role).values()))
    files = checkpoint_files.weight_files(directory)
    if len(files) > 1:
        raise ModelError(
            f"--{role} {directory} holds {len(files)} files of weights and no {checkpoint_files.SHARD_INDEX} that says "
            "which belong to the model; save it again with save_pretrained"
        )
    return files


def stored_tensors(directory: Path, role: str) -> dict[str, StoredTensor] | None:
    """Name -> tensor of a checkpoint.

    Args:
        directory: The checkpoint. Files that its index names and that are not here are known by their names alone.
        role: Flag that names the checkpoint, for messages.

    Returns:
        None where neither weights nor an index is here, as for a hub id with one file of weights.

    Raises:
        ModelError: A header or the index can't be read.
    """
    shards = weight_shards(directory, role)
    if not shards:
        return None
    found: dict[str, StoredTensor] = {}
    missing = {file for file in shards if not (directory / file).is_file()}
    for file in shards:
        if file in missing:
            continue
        for name, entry in read_header(directory / file, role).items():
            if name != "__metadata__":
                found[name] = StoredTensor(file, tuple(entry["shape"]), str(entry["dtype"]))
    if missing:
        listed = checkpoint_files.weight_map(directory / checkpoint_files.SHARD_INDEX, role)
        found |= {name: StoredTensor(file) for name, file in listed.items() if file in missing}
    return found


def tensor_bytes(path: Path) -> int:
    """Bytes of a safetensors file behind its header."""
    with path.open("rb") as content:
        return path.stat().st_size - 8 - int.from_bytes(content.read(8), "little")


def read_header(path: Path, role: str) -> dict[str, Any]:
    """The JSON header of a safetensors file, which must be as long as its header says.

    Raises:
        ModelError: The file is damaged or incomplete.
    """
    try:
        with path.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            if not 0 < length <= _LONGEST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(content.read(length))
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        end = 0
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if not ("shape" in entry and "dtype" in entry):
                raise ValueError(f"{name} has no shape")
            end = max(end, int(entry["data_offsets"][1]))
        wanted, found = 8 + length + end, path.stat().st_size
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ModelError(f"can't read --{role} {path}: {first_line(error)}; download the file again") from error
    if found != wanted:
        state = "incomplete" if found < wanted else "damaged"
        sizes = f"it has {found:,} bytes, and its header tells of {wanted:,}"
        raise ModelError(f"--{role} {path} is {state}: {sizes}; download the file again")
    return header
