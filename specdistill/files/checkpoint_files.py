"""Recognises what a checkpoint's directory holds, from file names and JSON alone. Reads no weights, needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line

SHARD_INDEX = "model.safetensors.index.json"
"""List of the files that hold the weights, if there are several."""
TOKENIZER_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""Files that hold a tokenizer's tokens; one of them is enough."""
_PICKLES = ("*.bin", "*.pt", "*.pth")
_NOT_THE_MODEL = ("adapter_model", "training_args", "optimizer", "scheduler", "rng_state")
_FLOATS = ("F64", "F32", "F16", "BF16")


def read_json(path: Path, role: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: The file can't be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ModelError(f"can't read --{role} {path}: {first_line(error)}; download the file again") from error
    if not isinstance(content, dict):
        raise ModelError(f"--{role} {path} holds no JSON object; download the file again")
    return content


def weight_map(index: Path, role: str) -> dict[str, str]:
    """Tensor -> file, as an index names them.

    Raises:
        ModelError: The index can't be read, or names no files.
    """
    files = read_json(index, role).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ModelError(f"--{role} {index} is damaged: its weight_map names no files; download it again")
    return {str(name): str(file) for name, file in files.items()}


def why_no_files(name: str, error: Exception) -> str:
    """Why nothing is read under a name that is no directory here.

    Args:
        name: As the user gave it.
        error: What the hub's library raised.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    # A hub id's owner is seldom a folder here, but a mistyped directory's parent is one.
    mistyped = "there is no directory of that name here, and as a hub id: " if Path(name).parent.is_dir() else ""
    # The library's own sentences are about its snapshots and variables.
    away = isinstance(error, LocalEntryNotFoundError)
    reason = "nothing of it is cached, and the hub can't be reached" if away else first_line(error)
    return f"{mistyped}{reason} (a hub id needs network access or a local cache)"


def check_hub_id(name: str, role: str) -> None:
    """Raises ModelError where the name of a model that is not here can only be meant as a path."""
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"--{role} {name} does not exist; name a hub id, a checkpoint directory or a .gguf file")


def check_directory(directory: Path, name: str, role: str) -> None:
    """Checks that a directory holds a whole model's configuration.

    Raises:
        ModelError: It holds no config.json, or one that is no JSON object.
    """
    if not (directory / "config.json").is_file():
        raise ModelError(f"--{role} {name} has no config.json; name a directory that save_pretrained wrote")
    read_json(directory / "config.json", role)


def check_tokenizer(directory: Path, name: str, role: str) -> None:
    """Checks that there are tokenizer files.

    Raises:
        ModelError: There are none.
    """
    if not any((directory / file).is_file() for file in TOKENIZER_VOCABULARIES):
        raise ModelError(
            f"--{role} {name} has no tokenizer files (one of {', '.join(TOKENIZER_VOCABULARIES)}); copy them from the "
            "model that it was made from"
        )


def check_weights(directory: Path, name: str, role: str) -> None:
    """Checks that every file of the weights is there, as safetensors.

    Raises:
        ModelError: Weights are missing, or they are pickles.
    """
    if not weight_files(directory):
        found = pickles(directory)
        if not found:
            raise ModelError(f"--{role} {name} holds no weights (*.safetensors)")
        raise ModelError(
            f"--{role} {name} holds its weights as pickles ({found[0]}), which run code when they are loaded; only "
            "safetensors are read: load the model where you trust it and save it with save_pretrained"
        )
    index = directory / SHARD_INDEX
    if (directory / "model.safetensors").is_file() or not index.is_file():
        return
    for file in sorted(set(weight_map(index, role).values())):
        if not (directory / file).is_file():
            raise ModelError(
                f"--{role} {name} is incomplete: {SHARD_INDEX} names {file}, which is missing; download it again"
            )


def refuse_integers(directory: Path, where: str) -> None:
    """Refuses weights in integers or one-byte floats: without a quantisation's settings nothing says what they mean.

    Raises:
        ModelError: Names the first such weight; `where` names the model.
    """
    for file in weight_files(directory):
        try:
            with (directory / file).open("rb") as content:
                header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        except (OSError, ValueError, MemoryError, OverflowError):
            # Loading says what is wrong with it.
            continue
        for name, entry in header.items():
            if name.endswith(".weight") and isinstance(entry, dict) and entry.get("dtype") not in _FLOATS:
                raise ModelError(
                    f"{where}: {name} is stored in integers or one-byte floats, but config.json has no "
                    "quantization_config that says how to read them; take the checkpoint that it was quantised from"
                )


def weight_files(directory: Path) -> list[str]:
    """Names of the safetensors that hold a model; an adapter's are none."""
    return _of_the_model(directory, ("*.safetensors",))


def pickles(directory: Path) -> list[str]:
    """Names of the pickles that may hold a model; an adapter's and a trainer's are none."""
    return _of_the_model(directory, _PICKLES)


def _of_the_model(directory: Path, patterns: tuple[str, ...]) -> list[str]:
    found = (path.name for pattern in patterns for path in directory.glob(pattern))
    return sorted(name for name in found if not name.startswith(_NOT_THE_MODEL))
