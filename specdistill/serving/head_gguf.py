"""Writes a head as a .gguf file that llama.cpp loads as EAGLE-3.

After llama.cpp's `conversion/llama.py` and `src/models/eagle3.cpp`: the architecture is `eagle3`, a list names
the target's layers whose inputs are read, and the tensor `d2t` holds each row's id itself, where checkpoints hold
its distance. gguf 0.19 has no constants for these. The tokenizer is that of the file that is served.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor
from torch.nn.functional import pad

from specdistill.errors import ModelError
from specdistill.files import atomic
from specdistill.files.head_record import LAYERS_KEY, TRAINED_KEY
from specdistill.models.head_draft import HeadModel
from specdistill.serving import gguf_writer

ARCHITECTURE = "eagle3"
_LAYERS = ("extract_layers", "target_layers")
"""Keys of the layers that are read: llama.cpp renamed it in 2026, and each of its versions looks for one."""
_NAMES = {
    "fc": "fc",
    "norm": "output_norm",
    "lm_head": "output",
    "embed_tokens": "token_embd",
    "layers.0.input_layernorm": "blk.0.attn_norm",
    "layers.0.hidden_norm": "blk.0.attn_norm_2",
    "layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    **{f"layers.0.self_attn.{name}_proj": f"blk.0.attn_{name}" for name in ("q", "k", "v")},
    "layers.0.self_attn.o_proj": "blk.0.attn_output",
    **{f"layers.0.mlp.{name}_proj": f"blk.0.ffn_{name}" for name in ("gate", "up", "down")},
}
"""Name in `Eagle3Head` -> name in the file, both without `.weight`."""


def write(draft: HeadModel, served: Path, output: Path, kind: str) -> None:
    """Writes `output` in one piece.

    Args:
        draft: The head, in float32 on the CPU.
        served: The target's .gguf file.
        output: File to write; it must not exist.
        kind: `float32`, `float16`, `bfloat16` or `q8_0`; vectors keep more bits.

    Raises:
        ModelError: The served file holds no tokenizer, or another one than the head's.
        OutputError: The disk is full.
    """
    import gguf

    head = draft.head
    gguf_writer.check_supported(head.config, draft.name)
    tokenizer, tokens = gguf_writer.served_tokenizer(draft, served)
    if int(head.draft_ids.max()) >= len(tokens):
        raise ModelError(
            f"{draft.name} proposes id {int(head.draft_ids.max())}, and the tokenizer of {served} ends at "
            f"{len(tokens) - 1}; name the .gguf of the target that it was trained for"
        )

    def fill(path: Path) -> None:
        writer = gguf.GGUFWriter(path, ARCHITECTURE)
        gguf_writer.describe(writer, draft, len(tokens), kind)
        for name in _LAYERS:
            writer.add_array(f"{ARCHITECTURE}.{name}", list(head.aux_layers))
        writer.add_uint32(f"{ARCHITECTURE}.target_hidden_size", int(head.config.target_hidden_size))
        writer.add_bool(f"{ARCHITECTURE}.norm_before_residual", False)
        # llama.cpp passes over what it does not know; `check` reads these.
        for key in (LAYERS_KEY, TRAINED_KEY):
            if isinstance(known := getattr(head.config, key, None), int):
                writer.add_uint32(f"{ARCHITECTURE}.{key}", known)
        for name, field in tokenizer.items():
            gguf_writer.copy_field(writer, name, field)
        factors = gguf_writer.rope_factors(head.config)
        if factors is not None:
            writer.add_tensor(gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", factors)
        for name, tensor in _tensors(draft, len(tokens)):
            data, stored = gguf_writer.encoded(tensor.float().numpy(), kind)
            writer.add_tensor(f"{_NAMES[name]}.weight", data, raw_dtype=stored)
        if len(head.draft_ids) != len(tokens):
            writer.add_tensor("d2t", head.draft_ids.numpy(), raw_dtype=gguf.GGMLQuantizationType.I64)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    atomic.write_with(output, fill)


def _tensors(draft: HeadModel, tokens: int) -> list[tuple[str, Tensor]]:
    """(name without `.weight`, tensor): queries and keys in llama.cpp's order, an embedding of `tokens` rows."""
    config, found = draft.head.config, []
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in draft.head.state_dict().items():
        stem = name.removesuffix(".weight")
        last = stem.rpartition(".")[2]
        if stem == "embed_tokens":
            # llama.cpp loads only as many rows as the file has tokens; padding is no text.
            tensor = pad(tensor[:tokens], (0, 0, 0, max(0, tokens - len(tensor))))
        found.append((stem, gguf_writer.paired(tensor, heads[last]) if last in heads else tensor))
    return found
