"""Weights packed for small passes on an x86 CPU: a decoder's passes are 1 to 10 tokens high.

torch's general matrix product is slow at these heights: checking 5 tokens costs nearly two steps, although it reads the
same weights. FBGEMM and oneDNN, which torch ships, repack the weights once and then run almost as fast as memory can
deliver them.

    float32   the weights in oneDNN's layout. Exact. On an AMD EPYC with AVX-512 passes of 1 / 2 / 4 tokens of
              SmolLM2-135M took 26 / 30 / 30 ms; torch's own product took 38 / 70 / 60 ms.
    float16   weights rounded to half precision, with activations and sums in float32. A token's result does not depend
              on the other tokens of its pass, except for the order of float32 sums, as without packing. So decoding
              stays exact for the rounded model. bfloat16 and float16 checkpoints lose only values below 6e-8.
    int8      weights in 8 bits per output channel, activations in 7 bits per pass. Fastest, and lossy: tokens of one
              pass share a scale, so checking several tokens gives other results than plain steps. On SmolLM2 greedy
              output with a draft differed from plain int8 decoding for every prompt.
"""

from __future__ import annotations

import functools
import time
import warnings

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from specdistill.errors import ConfigError
from specdistill.models import quantised
from specdistill.models.language_model import LanguageModel

KINDS = ("float32", "float16", "int8")
"""Values of --pack."""

_ROWS = 4
"""Height of a pass that oneDNN lays weights out for; other heights read the same layout."""


class PackedLinear(nn.Module):
    """A linear layer with packed weights, which only FBGEMM (float16, int8) or oneDNN (float32) can read.

    Args:
        weight: [out, in], any float dtype.
        bias: [out] or None.
        kind: `float32`, `float16` or `int8`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str) -> None:
        super().__init__()
        self.kind = kind
        weight = weight.detach().float().contiguous()
        bias = None if bias is None else bias.detach().float()
        if kind == "float32":
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
            self._multiply = functools.partial(_multiply_float32, bias=bias)
        elif kind == "float16":
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            self._multiply = torch.ops.quantized.linear_dynamic_fp16
        else:
            scales = weight.abs().amax(1).clamp(min=1e-12) / 127
            with warnings.catch_warnings():
                # torch recommends torchao instead of torch.quantize_*, but it has no kernels for small passes on x86.
                warnings.simplefilter("ignore")
                rounded = torch.quantize_per_channel(
                    weight, scales.double(), torch.zeros(len(scales), dtype=torch.int64), 0, torch.qint8
                )
            self._packed = torch.ops.quantized.linear_prepack(rounded, bias)
            # Without VNNI, products of full bytes would overflow their 16-bit sums, so activations get 7 bits.
            self._multiply = functools.partial(torch.ops.quantized.linear_dynamic, reduce_range=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._multiply(inputs, self._packed)


def _multiply_float32(inputs: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    # oneDNN takes a tenth longer over three dimensions than over two.
    flat = torch.ops.mkldnn._linear_pointwise(inputs.reshape(-1, inputs.shape[-1]), packed, bias, "none", [], "")
    return flat.view(*inputs.shape[:-1], flat.shape[-1])


def check_packable(kind: str, device: str) -> None:
    """Checks that packed weights can run here; loads no model.

    Raises:
        ConfigError: The device is not a CPU, or this build of torch lacks the library.
    """
    if device != "cpu":
        raise ConfigError(f"--pack {kind} is for CPUs; leave it out on {device}")
    if kind == "float32":
        if not torch.backends.mkldnn.is_available():
            raise ConfigError("--pack float32 needs oneDNN, which this build of torch lacks; leave it out")
    elif "fbgemm" not in torch.backends.quantized.supported_engines:
        raise ConfigError(f"--pack {kind} needs torch's FBGEMM, which this build lacks (x86 only); leave it out")


def pack(model: LanguageModel, kind: str) -> float:
    """Replaces a model's linear layers and its output head by packed ones, for inference only.

    Args:
        model: A float32 model on a CPU. It is changed in place, and can't be saved or trained afterwards.
        kind: `float32`, `float16` or `int8`.

    Returns:
        Seconds that packing took.

    Raises:
        ConfigError: The kind is unknown, or packed weights can't run here.
        ModelError: The model's weights are quantised already.
    """
    if kind not in KINDS:
        raise ConfigError(f"--pack must be one of {', '.join(KINDS)}, got {kind}")
    check_packable(kind, model.device.type)
    quantised.check_repackable(model.config, model.name, kind)
    start = time.perf_counter()
    if kind != "float32":
        torch.backends.quantized.engine = "fbgemm"
    head = model.model.get_output_embeddings()
    # Packed weights are no parameters, which a report would count.
    model.parameters = model.num_parameters
    for module in list(model.model.modules()):
        for name, child in list(module.named_children()):
            if child is head:
                continue
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, kind))
            elif isinstance(child, Conv1D):
                setattr(module, name, PackedLinear(child.weight.T, child.bias, kind))
    with model.generating():
        # Found before layers are rounded; the packed head itself has no weights to compare.
        model.packed_head = PackedLinear(model.with_logit_scale().inference_head(), model.inference_bias(), kind)
    return time.perf_counter() - start
