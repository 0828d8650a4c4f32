"""Names a model's files by their content, and reads shapes from the header of an adapter's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

_WHOLE = 2**28
"""Files up to so many bytes are read as a whole: an adapter's usually are."""
_PIECE, _PIECES = 2**16, 256
"""Bytes of each piece, and pieces spread over a larger file that stand for it: enough to tell checkpoints apart."""
_KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings")
"""Modules with a row for each id."""


def digest(parts: Sequence[str]) -> str:
    """16 hexadecimal digits that stand for some texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def content_key(directory: Path) -> str:
    """Hash of a directory's configuration, tokenizer and weights."""
    files = sorted(path for path in directory.iterdir() if path.suffix in _KINDS and path.is_file())
    return digest([part for path in files for part in (path.name, file_key(path))])


def file_key(path: Path) -> str:
    """Size and hash of a file's content; of a large file the hash of pieces spread over it, in seconds for any size."""
    size, content = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            return f"{size} {hashlib.file_digest(file, 'sha256').hexdigest()}"
        for piece in range(_PIECES):
            file.seek((size - _PIECE) * piece // (_PIECES - 1))
            content.update(file.read(_PIECE))
    return f"{size} {content.hexdigest()}"


def rows_of(weights: Path) -> int | None:
    """Rows of the embedding or head that an adapter's weights hold; None where they hold none."""
    try:
        with weights.open("rb") as content:
            header = json.loads(content.read(int.from_bytes(content.read(8), "little")))
        shapes = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, MemoryError, OverflowError):
        # Merging says what is wrong with it.
        return None
    for name, shape in sorted(shapes.items()):
        if not any(f".{module}." in f".{name}" for module in _EMBEDDINGS) or not shape:
            continue
        if name.endswith(".lora_embedding_A"):
            return int(shape[1])
        # Whole weights, or the side of a low-rank head that has a row for each id.
        if name.endswith((".lora_B.weight", ".lm_head.weight")) or (name.endswith(".weight") and "lora_" not in name):
            return int(shape[0])
    return None
