"""Keeps a frozen target in less memory: quantised by bitsandbytes, or with its layers in the CPU's memory.

Only the decoder layers change. Embedding, norm and output head stay as they are, because the losses read the head's
weights.
"""

from __future__ import annotations

import importlib.util

import torch
from transformers import BitsAndBytesConfig

from specdistill.errors import ModelError
from specdistill.models import families
from specdistill.models.language_model import LanguageModel

QUANTISED = ("int8", "nf4")
"""Values of --target-memory that need bitsandbytes."""


def check(kind: str) -> None:
    """Checks that the packages for a value of --target-memory are installed; loads no model.

    Raises:
        ModelError: bitsandbytes is missing.
    """
    if kind in QUANTISED and importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"--target-memory {kind} needs bitsandbytes: pip install 'specdistill[quantised]'")


def quantisation(kind: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """Settings of from_pretrained for a value of --target-memory; None if it does not quantise.

    Args:
        kind: int8, nf4, or a value that does not quantise.
        dtype: dtype in which 4-bit weights are multiplied.
    """
    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    if kind == "nf4":
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None


def offload(model: LanguageModel, device: str) -> None:
    """Keeps the decoder layers in the CPU's memory, and copies each one to the device while it runs.

    Args:
        model: A frozen model on the CPU.
        device: Device that computes.
    """
    from accelerate import cpu_offload

    layers = families.decoder_layers(model.base_model, model.config)
    in_layers = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
    for layer in layers:
        cpu_offload(layer, execution_device=torch.device(device))
    for tensor in (*model.model.parameters(), *model.model.buffers()):
        if id(tensor) not in in_layers and not tensor.is_meta:
            tensor.data = tensor.data.to(device)
