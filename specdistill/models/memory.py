"""A frozen target in less memory: quantised by bitsandbytes, or with its layers waiting in the CPU's memory.

Only the decoder layers change. Embedding, norm and output head stay as they are: the losses multiply by the head
themselves.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from specdistill.errors import ModelError
from specdistill.models import families
from specdistill.models.language_model import LanguageModel

QUANTISED = ("int8", "nf4")


def check(kind: str) -> None:
    """Needs no model.

    Raises:
        ModelError: bitsandbytes is missing.
    """
    if kind in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--target-memory {kind} needs bitsandbytes: pip install 'specdistill[quantised]'")


def loading_arguments(kind: str, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """What from_pretrained needs for a quantised model; nothing for the other kinds.

    Args:
        kind: int8, nf4, or anything else.
        dtype: Of the sums.
        device: Where the weights go; they can't be moved later.
    """
    if kind not in QUANTISED:
        return {}
    settings: dict[str, Any] = {"load_in_8bit": True}
    if kind == "nf4":
        settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": BitsAndBytesConfig(**settings), "device_map": {"": device}}


def offload(model: LanguageModel, device: str) -> None:
    """Leaves the decoder layers in the CPU's memory; each visits the device while it runs.

    Args:
        model: Frozen, on the CPU.
        device: Where it computes.
    """
    from accelerate import cpu_offload

    layers = families.decoder_layers(model.base_model, model.config)
    inside = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    for layer in layers:
        cpu_offload(layer, execution_device=torch.device(device))
    for tensor in (*model.model.parameters(), *model.model.buffers()):
        if id(tensor) not in inside and not tensor.is_meta:
            tensor.data = tensor.data.to(device)
