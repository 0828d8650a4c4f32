"""Tiny checkpoints in the file forms of quantised ones, each beside the plain weights that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import wild_checkpoints as wild
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

GROUP = 32
"""Weights that share a scale in the 4-bit form."""


def _layers(directory: Path, change: Callable[[dict[str, Tensor], str, Tensor], Tensor]) -> dict[str, Tensor]:
    """Rewrites the layers' matrices; every weight's value afterwards."""
    meant: dict[str, Tensor] = {}

    def rewrite(weights: dict[str, Tensor]) -> None:
        for name, weight in list(weights.items()):
            inside = ".layers." in name and weight.ndim == 2
            meant[name] = change(weights, name.removesuffix("weight"), weight) if inside else weight

    wild.change_weights(directory, rewrite)
    return meant


def _settings(directory: Path, form: str, weights: dict, activations: dict | None) -> None:
    """The configuration as llm-compressor writes it."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed"}
    settings |= {"config_groups": {"group_0": group}, "ignore": ["lm_head"], "kv_cache_scheme": None}
    wild.change_json(directory / "config.json", quantization_config=settings)


def packed_int4(directory: Path) -> dict[str, Tensor]:
    """compressed-tensors' pack-quantized: eight numbers of 4 bits in each int32, a scale for each group of a row."""

    def change(weights: dict[str, Tensor], name: str, weight: Tensor) -> Tensor:
        rows, columns = weight.shape
        groups = weight.view(rows, columns // GROUP, GROUP)
        scale = (groups.abs().amax(-1, keepdim=True) / 7).bfloat16().float()
        whole = (groups / scale).round().clamp(-8, 7)
        nibbles = (whole.view(rows, columns // 8, 8) + 8).to(torch.int64)
        word = (nibbles << (4 * torch.arange(8))).sum(-1)
        del weights[f"{name}weight"]
        weights[f"{name}weight_packed"] = torch.where(word >= 2**31, word - 2**32, word).to(torch.int32)
        weights[f"{name}weight_scale"] = scale.squeeze(-1).bfloat16()
        weights[f"{name}weight_shape"] = torch.tensor([rows, columns])
        return (whole * scale).view(rows, columns)

    meant = _layers(directory, change)
    numbers = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    _settings(directory, "pack-quantized", numbers | {"dynamic": False, "observer": "minmax"}, None)
    return meant


def float8(directory: Path) -> dict[str, Tensor]:
    """compressed-tensors' float-quantized with a scale for each row, and activations rounded to FP8 while it runs."""

    def change(weights: dict[str, Tensor], name: str, weight: Tensor) -> Tensor:
        scale = (weight.abs().amax(-1, keepdim=True) / 448).bfloat16()
        weights[f"{name}weight"] = (weight / scale.float()).to(torch.float8_e4m3fn)
        weights[f"{name}weight_scale"] = scale
        return weights[f"{name}weight"].float() * scale.float()

    meant = _layers(directory, change)
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    activations = numbers | {"strategy": "token", "dynamic": True}
    _settings(directory, "float-quantized", numbers | {"strategy": "channel", "dynamic": False}, activations)
    return meant


def block_float8(directory: Path) -> dict[str, Tensor]:
    """FP8 with a scale for each block of 128 x 128, as DeepSeek and Qwen publish it."""
    return wild.block_fp8(directory, torch.float32)


def _bitsandbytes(directory: Path, **kind) -> dict[str, Tensor]:
    small = AutoModelForCausalLM.from_pretrained(directory, quantization_config=BitsAndBytesConfig(**kind))
    meant = load_file(directory / wild.WEIGHTS)
    (directory / wild.WEIGHTS).unlink()
    small.save_pretrained(directory)
    plain = small.dequantize(dtype=torch.float32)
    return meant | {name: weight.float() for name, weight in plain.state_dict().items()}


def nf4(directory: Path) -> dict[str, Tensor]:
    """Saved by transformers after bitsandbytes' 4-bit quantisation."""
    return _bitsandbytes(directory, load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def int8(directory: Path) -> dict[str, Tensor]:
    """Saved by transformers after bitsandbytes' 8-bit quantisation."""
    return _bitsandbytes(directory, load_in_8bit=True)


FORMS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "bitsandbytes nf4": nf4,
    "bitsandbytes int8": int8,
    "fp8 in blocks": block_float8,
    "compressed-tensors int4": packed_int4,
    "compressed-tensors fp8": float8,
}
"""Name of a form -> what rewrites a saved checkpoint into it, and returns the weights it stands for."""
