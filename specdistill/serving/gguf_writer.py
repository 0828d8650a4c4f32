"""Writes a draft as a .gguf file for llama.cpp: weights of the draft, tokenizer of the target's own file.

Written with llama.cpp's own package `gguf` (names of tensors and keys, number formats). All keys under `tokenizer.` are
copied from the file that is served: llama.cpp compares both files' tokens, and a checkpoint does not hold its
pre-tokenizer. Llama's attention weights are reordered, since llama.cpp rotates neighbouring pairs where transformers
rotates halves.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig

from specdistill.errors import ModelError
from specdistill.files import atomic
from specdistill.models import LanguageModel, vocabulary

STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
_ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}


def check_supported(config: PretrainedConfig, name: str) -> None:
    """Refuses architectures and rope scalings that this writer does not know.

    Raises:
        ModelError: The draft is of another kind; the message names the supported ones.
    """
    if config.model_type not in _ARCHITECTURES:
        raise ModelError(
            f"{name} is of type {config.model_type!r}; drafts of {', '.join(_ARCHITECTURES)} can be written as .gguf, "
            "others by llama.cpp's convert_hf_to_gguf.py"
        )
    scaling = _rope(config).get("rope_type", "default")
    if scaling not in ("default", "linear", "llama3"):
        raise ModelError(f"{name} scales its rope by {scaling!r}; use llama.cpp's convert_hf_to_gguf.py")


def write(draft: LanguageModel, served: Path, output: Path, kind: str) -> int:
    """Writes `output` in one piece.

    Args:
        draft: The draft, in float32 on the CPU.
        served: The target's .gguf file.
        output: File to write; it must not exist.
        kind: `float32`, `float16`, `bfloat16` or `q8_0`. Vectors, and rows that blocks of 32 do not fill, keep more
            bits.

    Returns:
        Rows of embedding and head: the served file's number of tokens.

    Raises:
        ModelError: The served file holds no tokenizer, or another one than the draft's.
        OutputError: The disk is full.
    """
    import gguf

    tokenizer, tokens = served_tokenizer(draft, served)
    rows = len(tokens)
    model = copy.deepcopy(draft.model)
    vocabulary.resize_to(model, rows, draft.vocab_size)
    architecture = gguf.MODEL_ARCH[_ARCHITECTURES[draft.config.model_type]]
    names = gguf.get_tensor_name_map(architecture, draft.config.num_hidden_layers)

    def fill(path: Path) -> None:
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
        describe(writer, draft, rows, kind)
        for name, field in tokenizer.items():
            copy_field(writer, name, field)
        factors = rope_factors(draft.config)
        if factors is not None:
            writer.add_tensor(gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", factors)
        for name, tensor in _tensors(model):
            mapped = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert mapped is not None, f"gguf knows no name for {name}"
            data, stored = encoded(tensor.float().numpy(), kind)
            writer.add_tensor(mapped, data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    atomic.write_with(output, fill)
    return rows


def served_tokenizer(draft: LanguageModel, served: Path) -> tuple[dict[str, Any], list[str]]:
    """The tokenizer of the file that is served: its keys, and its tokens by id.

    Raises:
        ModelError: The file holds no tokenizer, or another one than the draft's.
    """
    import gguf

    fields = gguf.GGUFReader(served).fields
    tokenizer = {name: field for name, field in fields.items() if name.startswith("tokenizer.")}
    if "tokenizer.ggml.tokens" not in tokenizer:
        raise ModelError(f"{served} holds no tokenizer; name the .gguf that llama.cpp serves")
    tokens: list[str] = tokenizer["tokenizer.ggml.tokens"].contents()
    for token, number in sorted(draft.tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if number >= len(tokens) or tokens[number] != token:
            theirs = repr(tokens[number]) if number < len(tokens) else "missing"
            raise ModelError(
                f"{served} is of another tokenizer than the draft: id {number} is {theirs} there and {token!r} here"
            )
    return tokenizer, tokens


def describe(writer: Any, draft: LanguageModel, rows: int, kind: str) -> None:
    """Writes name and sizes of a draft, whose embedding has so many rows."""
    import gguf

    config, rope = draft.config, _rope(draft.config)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(draft.name).name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "float32" else f"MOSTLY_{STORED[kind]}"])
    writer.add_vocab_size(rows)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))


def copy_field(writer: Any, name: str, field: Any) -> None:
    """A key with its value's own type, arrays too: a list of integers may be of any width."""
    import gguf

    if field.types[0] == gguf.GGUFValueType.ARRAY:
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=field.types[1])
    else:
        writer.add_key_value(name, field.contents(), field.types[0])


def _tensors(model: Any):
    """(name, tensor) as the file holds them; a tied head is left out, llama.cpp takes the embedding then."""
    config = model.config
    rotated = _ARCHITECTURES[config.model_type] == "LLAMA"
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if rotated and re.search(r"self_attn\.[qk]_proj\.", name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            tensor = paired(tensor, heads)
        yield name, tensor.detach()


def paired(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (first half, second half) to neighbouring pairs."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def encoded(values: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """A tensor's numbers in a format of `STORED`, and gguf's name of the format that they got."""
    import gguf

    types = gguf.GGMLQuantizationType
    # As llama.cpp's own converter does: vectors are small, and added to large sums.
    wanted = (
        types.F32
        if values.ndim < 2
        else types[{"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}[kind]]
    )
    if wanted == types.Q8_0 and values.shape[-1] % 32:
        wanted = types.F16
    return gguf.quants.quantize(np.ascontiguousarray(values), wanted), wanted


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def rope_factors(config: PretrainedConfig) -> np.ndarray | None:
    """Divisors of the rope frequencies for Llama 3's scaling, float32 [head_dim / 2]; None without that scaling.

    Source: the `llama3` scaling of transformers' `modeling_rope_utils`, as factors of the unscaled frequencies.
    """
    rope = _rope(config)
    if rope.get("rope_type") != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wavelength = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    context = rope["original_max_position_embeddings"]
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    # Between the bounds frequencies, not factors, are mixed.
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)
