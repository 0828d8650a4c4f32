"""Checks weights that were read: exactly those of the architecture, and all of them numbers."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import torch

from specdistill.errors import ModelError
from specdistill.models import multimodal

_IGNORED = re.compile(r"^mtp\.|\.attn\.masked_bias$")
"""Weights that change no answer: layers that guess further tokens ahead, and a constant of old GPT-2 checkpoints."""
_ACTIVATION_SCALES = re.compile(r"\.(activation_scale|input_scale)$")


def check_report(report: Any, where: str, *, dequantised: bool = False, inside: bool = False) -> None:
    """Refuses weights that are missing, left over, or of another shape than the configuration says.

    Args:
        report: What from_pretrained returns for `output_loading_info=True`. Tied weights, computed buffers and what the
            architecture declares ignorable are not in it.
        where: The model as messages name it, such as `--target NAME`.
        dequantised: Whether the weights became floats, so that scales of activations have no use.
        inside: Whether the model is the text part of a multimodal one, whose towers are left over.

    Raises:
        ModelError: The weights are not exactly the architecture's own; the message names the first one.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{where} holds no weights for {_named(missing)}, which would be random; download or save the checkpoint "
            "again"
        )
    other_shapes = sorted(report["mismatched_keys"])
    if other_shapes:
        name, stored, wanted = other_shapes[0]
        raise ModelError(
            f"{where}: {name} has the shape {list(stored)}, but config.json asks for {list(wanted)}; the two belong to "
            "different models"
        )
    left_over = [
        name
        for name in sorted(report["unexpected_keys"])
        if not _IGNORED.search(name)
        and not (dequantised and _ACTIVATION_SCALES.search(name))
        and not (inside and multimodal.is_beside_text(name))
    ]
    if left_over:
        raise ModelError(
            f"{where} holds weights that its architecture has no place for: {_named(left_over)}; without them another "
            "model would be measured: save it as one plain checkpoint, not quantised and with adapters merged"
        )


def check_finite(model: torch.nn.Module, where: str) -> None:
    """Refuses weights that are NaN or infinite. Reads each weight once.

    Raises:
        ModelError: A weight is not finite; the message names it.
    """
    for name, weight in model.named_parameters():
        # One-byte floats are quantised, and torch does not add them.
        if weight.is_meta or not weight.is_floating_point() or weight.element_size() == 1:
            continue
        # A sum of finite weights may overflow, so it only says where to look closely.
        if not torch.isfinite(weight.detach().sum(dtype=torch.float32)) and not torch.isfinite(weight).all():
            raise ModelError(
                f"{where}: {name} holds NaN or infinity, so the checkpoint is damaged or its training failed; take an "
                "earlier one"
            )


def _named(names: Collection[str]) -> str:
    first, *others = names
    return f"{first} and {len(others)} more" if others else first
