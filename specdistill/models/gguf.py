"""Converts a .gguf file to a plain checkpoint, once; later runs reuse it from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files import atomic
from specdistill.files.cache import cache_root
from specdistill.models import weights
from specdistill.models.quiet import quiet_bars


def check_gguf(path: Path) -> None:
    """Checks the first four bytes of a file.

    Raises:
        ModelError: The file is not a GGUF file.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file (it starts with {magic!r}); download it again")


def converted_directory(path: Path) -> Path:
    """Cache folder of a .gguf. Its name depends on the content, so a changed file is converted again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(2**20))
        file.seek(max(0, path.stat().st_size - 2**20))
        digest.update(file.read())
    digest.update(str(path.stat().st_size).encode())
    return cache_root() / "gguf" / f"{path.stem}-{digest.hexdigest()[:16]}"


def convert(path: Path, say: Callable[[str], None] = print) -> Path:
    """Dequantises a .gguf into a float32 checkpoint in the cache, unless it is there already.

    Args:
        path: The .gguf file.
        say: Called with one line when a conversion starts. It takes about half a minute for 135M parameters.

    Returns:
        Folder of the checkpoint.

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
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        # One line says what happens here; transformers' three bars would follow it.
        with quiet_bars():
            tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
            # Without `dequantize` the weights would stay packed, and could be neither trained nor saved.
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **source,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
                output_loading_info=True,
            )
        # A pair, because of `output_loading_info`.
        model, report = loaded
    except Exception as error:
        raise ModelError(
            f"transformers can't read {path}: {first_line(error)}; if the file was cut off, download it again"
        ) from error
    weights.check_report(report, str(path))
    weights.check_finite(model, str(path))
    with atomic.new_directory(directory) as temporary, quiet_bars():
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return directory
