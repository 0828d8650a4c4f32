"""Checkpoints whose weights are quantised already: which can be loaded here, and which can be cut or trained."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import torch
from transformers import FineGrainedFP8Config, PretrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer

from specdistill.errors import ModelError, first_line
from specdistill.models.quiet import quiet_bars, quiet_transformers

DEQUANTISED = ("fp8", "mxfp8")
"""Methods whose weights become ordinary floats while they are loaded."""
_PACKAGES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
}
"""Method -> module -> name of the package that holds it; transformers itself knows those of other methods."""


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """Settings of a checkpoint's quantisation; empty if its weights are plain."""
    # Older compressed-tensors checkpoints use the second name.
    stored = getattr(config, "quantization_config", None) or getattr(config, "compression_config", None) or {}
    return dict(stored if isinstance(stored, dict) else stored.to_dict())


def method_of(config: PretrainedConfig) -> str | None:
    """Name of the method that quantised a checkpoint; None if its weights are plain."""
    settings = settings_of(config)
    if not settings:
        return None
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    method = settings.get("quant_method", "an unnamed method")
    return str(getattr(method, "value", method))


def stays(config: PretrainedConfig) -> bool:
    """Whether a checkpoint's weights stay quantised when they are loaded."""
    return method_of(config) not in (None, *DEQUANTISED)


def check(config: PretrainedConfig, side_file: str | None, where: str) -> None:
    """Checks that transformers can load a checkpoint's quantised weights on this machine.

    Args:
        config: The checkpoint's configuration.
        side_file: Text of ModelOpt's `hf_quant_config.json`, if the checkpoint has one.
        where: The model as messages name it, such as `--target NAME`.

    Raises:
        ModelError: The method is unknown to transformers, or a package or a GPU is missing.
    """
    method = method_of(config) or (None if side_file is None else _modelopt(side_file))
    if method is None:
        return
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise ModelError(
            f"{where} is quantised by {method}, which transformers can't read: its weights would be measured without "
            "their scales; name the checkpoint that it was quantised from"
        )
    missing = [package for module, package in _PACKAGES.get(method, {}).items() if not _installed(module)]
    if missing:
        raise ModelError(f"{where} is quantised by {method}, which needs: pip install {' '.join(missing)}")
    try:
        with quiet_transformers():
            quantizer = AutoHfQuantizer.from_config(settings_of(config), pre_quantized=True)
            quantizer.validate_environment(device_map=None)
    except Exception as error:
        raise ModelError(
            f"{where} is quantised by {method}, which can't be loaded here: {first_line(error)}"
        ) from error


def check_plain(config: PretrainedConfig, where: str) -> None:
    """Checks that a model's weights will be ordinary floats, which can be cut, trained and written.

    Raises:
        ModelError: The weights stay quantised.
    """
    if stays(config):
        raise ModelError(
            f"{where} is quantised by {method_of(config)}, and quantised weights can't be cut, trained or exported; "
            "name the checkpoint that it was quantised from"
        )


def check_repackable(config: PretrainedConfig, name: str, kind: str) -> None:
    """Checks that --pack finds ordinary floats to pack.

    Raises:
        ModelError: The model's weights stay quantised.
    """
    if stays(config):
        raise ModelError(
            f"{name} is quantised by {method_of(config)}, and --pack {kind} packs ordinary floats only; leave it away"
        )


def unpack(model: PreTrainedModel, config: PretrainedConfig) -> None:
    """Lets compressed-tensors unpack its weights now rather than at the first pass, which would be a timed one.

    It does so before a pass of the whole model only, while hidden states come from the model without its head.

    Args:
        model: A loaded model; one that another method quantised is left as it is.
        config: Its checkpoint's configuration.
    """
    if method_of(config) == "compressed-tensors":
        with torch.no_grad(), quiet_bars():
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)


def loading_settings(config: PretrainedConfig) -> FineGrainedFP8Config | None:
    """Settings of from_pretrained that turn FP8 weights into floats; None for other checkpoints."""
    # The losses and the packed heads read weights, and FP8 layers would need kernels from the hub.
    return FineGrainedFP8Config(dequantize=True) if method_of(config) in DEQUANTISED else None


def _modelopt(side_file: str) -> str:
    try:
        producer = json.loads(side_file)["producer"]["name"]
    except (ValueError, KeyError, TypeError):
        producer = "modelopt"
    return str(producer)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
