"""Weights packed for small passes on an x86 CPU: what a decoder multiplies is 1 to 10 tokens high.

The general matrix product of torch falls off its fast path there: checking 5 tokens costs nearly two steps although
it reads the same weights. FBGEMM and oneDNN, which torch ships, lay the weights out once and stay near the speed of the
memory.

    float32   the weights as they are, once more in oneDNN's layout, which passes of 4 tokens or more read (below that
              torch's own product is faster). Exact, and twice the memory.
    float16   weights rounded to half precision, activations and sums float32. A token's result does not depend on what
              shares its pass (but for the order of float32 sums, as without packing), so decoding stays exact for the
              rounded model; bfloat16 and float16 checkpoints lose nothing but values below 6e-8.
    int8      weights in 8 bits per output channel, activations in 7 bits per pass. Fastest, and lossy: tokens that
              share a pass share a scale, so checking several tokens decides otherwise than a plain step. On SmolLM2
              greedy output with a draft differed from the plain int8 decoder's for every prompt.
"""

from __future__ import annotations

import functools
import time
import warnings

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from specdistill.errors import ConfigError
from specdistill.models.language_model import LanguageModel

KINDS = ("float32", "float16", "int8")

# Rows from which oneDNN's product beats torch's, with AVX-512 by far and with AVX2 by little; fixed, so that a pass of
# one size is always multiplied alike.
ONEDNN_ROWS = 4
# Numbers of a matrix from which it is worth it; smaller ones stay in a cache, where torch's own is as fast or faster.
ONEDNN_LEAST = 2**19


class PackedLinear(nn.Module):
    """A linear layer whose weights only FBGEMM (float16, int8) or oneDNN (float32) can read.

    Args:
        weight: [out, in], any float dtype; float32 keeps it too.
        bias: [out] or None.
        kind: `float32`, `float16` or `int8`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        super().__init__()
        weight = weight.detach().float().contiguous()
        bias = None if bias is None else bias.detach().float()
        if kind == "float32":
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, ONEDNN_ROWS)
            self._multiply = functools.partial(_either, weight=weight, bias=bias)
        elif kind == "float16":
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            self._multiply = torch.ops.quantized.linear_dynamic_fp16
        else:
            scales = weight.abs().amax(1).clamp(min=1e-12) / 127
            with warnings.catch_warnings():
                # torch.quantize_* is deprecated in favour of torchao, which has no small-pass kernels for this CPU.
                warnings.simplefilter("ignore")
                rounded = torch.quantize_per_channel(
                    weight, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
                )
            self._packed = torch.ops.quantized.linear_prepack(rounded, bias)
            # 7 bits for activations: without VNNI the products of full bytes overflow their 16-bit sums.
            self._multiply = functools.partial(torch.ops.quantized.linear_dynamic, reduce_range=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._multiply(inputs, self._packed)


def _either(inputs: Tensor, packed: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if inputs.numel() < ONEDNN_ROWS * inputs.shape[-1]:
        return nn.functional.linear(inputs, weight, bias)
    # It takes a tenth longer over three dimensions than over two.
    flat = torch.ops.mkldnn._linear_pointwise(inputs.reshape(-1, inputs.shape[-1]), packed, bias, "none", [], "")
    return flat.view(*inputs.shape[:-1], flat.shape[-1])


def _is_small(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and module.weight.numel() < ONEDNN_LEAST


def check_packable(kind: str, device: str) -> None:
    """Raises ConfigError where packed weights can't run, before any model is loaded."""
    if device != "cpu":
        raise ConfigError(f"--pack {kind} is for CPUs; leave it out on {device}")
    if kind == "float32":
        if not torch.backends.mkldnn.is_available():
            raise ConfigError("--pack float32 needs oneDNN, which this build of torch lacks; leave it out")
    elif "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ConfigError(f"--pack {kind} needs torch's FBGEMM, which this build lacks (it is x86 only)")


def pack(model: LanguageModel, kind: str) -> float:
    """Replaces a model's linear layers and its output head by packed ones, for inference only.

    Args:
        model: In float32 on a CPU; changed in place. It can't be saved or trained afterwards.
        kind: `float32`, `float16` or `int8`.

    Returns:
        Seconds that packing took.

    Raises:
        ConfigError: An unknown kind, or a machine that can't.
    """
    if kind not in KINDS:
        raise ConfigError(f"--pack must be one of {', '.join(KINDS)}, got {kind}")
    check_packable(kind, model.device.type)
    start = time.perf_counter()
    if kind != "float32":
        torch.backends.quantized.engine = "fbgemm"
    head = model.model.get_output_embeddings()
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if child is head or (kind == "float32" and _is_small(child)):
                continue
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, kind))
            elif isinstance(child, Conv1D):
                setattr(module, name, PackedLinear(child.weight.T, child.bias, kind))
    with model.generating():
        model.packed_head = PackedLinear(model.inference_head(), None, kind)
    return time.perf_counter() - start
