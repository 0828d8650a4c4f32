"""A hash of a model's content, by which results that it wrote are found again."""

from __future__ import annotations

import hashlib

from specdistill.files.adapter_contents import file_key
from specdistill.models.load import ModelSource

_FILES = (
    *("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "chat_template*"),
)
"""Files that decide what a model writes; cards, settings and logs beside them don't."""


def content_hash(source: ModelSource) -> str:
    """Hash of a model's weights, configuration, tokenizer and chat template.

    Args:
        source: The model. One of the hub is known by its name and commit.
    """
    if source.adapter is not None:
        return hashlib.sha256(source.adapter.content.encode()).hexdigest()
    digest = hashlib.sha256()
    if source.directory is None:
        commit = getattr(source.config, "_commit_hash", None)
        return hashlib.sha256(f"{source.location}@{commit}".encode()).hexdigest()
    for path in sorted({path for pattern in _FILES for path in source.directory.glob(pattern) if path.is_file()}):
        digest.update(f"{path.name}:{file_key(path)}\n".encode())
    return digest.hexdigest()
