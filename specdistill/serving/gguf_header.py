"""Reads the header of a .gguf file: architecture, sizes and tokenizer. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files.head_record import LAYERS_KEY, TRAINED_KEY
from specdistill.files.stored_tensors import StoredTensor
from specdistill.serving.head_files import OwnHead, claim

_KINDS = {"gpt2": "BPE", "llama": "SPM", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV"}
"""`tokenizer.ggml.model` -> kind of vocabulary."""
_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    **{name: name for name in (LAYERS_KEY, TRAINED_KEY)},
    "max_position_embeddings": "context_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "sliding_window": "attention.sliding_window",
    "num_nextn_predict_layers": "nextn_predict_layers",
}
"""Key of a config.json -> key of the header behind the architecture's name."""


@dataclass(frozen=True)
class GgufHeader:
    """The part of a .gguf file that comes before its weights."""

    config: dict[str, Any]
    """Sizes under the names that a config.json has."""
    tokens: dict[int, str]
    """Id -> token."""
    kind: str
    """Kind of the vocabulary; llama.cpp's own word where it is a rare one."""
    special: dict[str, int | None]
    """bos_token and eos_token -> id, None if there is none."""
    flags: dict[str, bool]
    """add_bos_token and add_eos_token, if the file sets them."""
    own_head: OwnHead
    """The layers by which the model drafts for itself."""


def read_header(path: Path, role: str) -> GgufHeader:
    """Reads what comes before the weights.

    Args:
        path: A .gguf file; of a split model the first part.
        role: `target` or `draft`, for messages.

    Raises:
        ModelError: The file is damaged, or holds no language model.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items() if not _long_and_unused(name)}
        head = {
            tensor.name: StoredTensor(path.name, tuple(map(int, tensor.shape)), tensor.tensor_type.name)
            for tensor in reader.tensors
            if ".nextn." in tensor.name
        }
    except Exception as error:
        raise ModelError(f"--{role} {path} can't be read as .gguf: {first_line(error)}; download it again") from error
    architecture, tokens = values.get("general.architecture"), values.get("tokenizer.ggml.tokens")
    if not isinstance(architecture, str) or not isinstance(tokens, list):
        raise ModelError(
            f"--{role} {path} holds no architecture and tokenizer; of a split model name the first part, of an adapter "
            "or a projector the model that it belongs to"
        )
    config: dict[str, Any] = {"model_type": architecture, "vocab_size": len(tokens)}
    for name, key in _SIZES.items():
        value = values.get(f"{architecture}.{key}")
        # Some architectures name one number per layer.
        config |= {name: max(value) if isinstance(value, list) else value} if value else {}
    if "num_hidden_layers" in config:
        # The file counts the layers of the model's own head too.
        config["num_hidden_layers"] -= config.get("num_nextn_predict_layers", 0)
    kind = str(values.get("tokenizer.ggml.model"))
    return GgufHeader(
        config,
        dict(enumerate(map(str, tokens))),
        _KINDS.get(kind, kind),
        {f"{name}_token": values.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")},
        {
            name: bool(values[f"tokenizer.ggml.{name}"])
            for name in ("add_bos_token", "add_eos_token")
            if f"tokenizer.ggml.{name}" in values
        },
        OwnHead(claim(config), head),
    )


def _long_and_unused(name: str) -> bool:
    return name in ("tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.token_type")
