"""A .gguf file as a plain checkpoint: dequantised once, cached, reused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from specdistill.errors import ModelError
from specdistill.files import atomic


def cache_root() -> Path:
    """Where converted checkpoints live: $SPECDISTILL_CACHE, else $XDG_CACHE_HOME/specdistill."""
    own = os.environ.get("SPECDISTILL_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "specdistill"


def check_gguf(path: Path) -> None:
    """Looks at the first four bytes.

    Raises:
        ModelError: It is no GGUF file.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file (it starts with {magic!r}); download it again")


def converted_directory(path: Path) -> Path:
    """The cache folder of a .gguf: named by its content, so that a new file of the old name is converted anew."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, path.stat().st_size - 2**20))
        digest.update(file.read())
    digest.update(str(path.stat().st_size).encode())
    return cache_root() / "gguf" / f"{path.stem}-{digest.hexdigest()[:16]}"


def convert(path: Path, say=print) -> Path:
    """Dequantises a .gguf into a float32 checkpoint in the cache, once; later calls return the folder at once.

    Args:
        path: The .gguf file.
        say: Told in one line that a conversion starts (it takes about half a minute for 135M parameters).

    Raises:
        ModelError: transformers can't read the file.
        OutputError: The cache can't be written.
    """
    directory = converted_directory(path)
    if directory.is_dir():
        return directory
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    say(f"converting {path.name} to a plain checkpoint, once (cached in {directory})")
    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        # Without `dequantize` the weights stay packed and could be neither trained nor saved.
        model = AutoModelForCausalLM.from_pretrained(
            **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    except Exception as error:
        raise ModelError(f"transformers can't read {path}: {_first_line(error)}") from error
    with atomic.new_directory(directory) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return directory


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
