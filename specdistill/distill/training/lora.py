"""Low-rank adapters in a draft, through peft; the saved draft holds merged weights, as engines want them."""

from __future__ import annotations

import copy
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from specdistill.errors import ConfigError
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models.mask_token import embedding_weight


def check_installed() -> None:
    """Raises ConfigError where peft is missing; needs no model."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("--lora-rank needs the package peft: pip install 'specdistill[lora]'")


def add_adapters(model: PreTrainedModel, rank: int, parallel: ParallelDrafting | None = None) -> None:
    """Adds adapters to every linear layer but the head, in place, and freezes all other weights.

    Args:
        model: Changed in place.
        rank: Of the adapters.
        parallel: Names the mask token of a parallel draft, whose embedding is trained too: no adapter reaches it.
    """
    from peft import LoraConfig, inject_adapter_in_model

    # alpha = rank: the adapters' product counts as it is, whatever the rank.
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(settings, model)
    if parallel is not None:
        _train_row(embedding_weight(model), parallel.mask_id)


def trained_groups(network: nn.Module) -> list[dict[str, Any]]:
    """The trained parameters as an optimiser's groups.

    Where adapters are trained, what is beside them is an embedding of which one row learns: no weight decay, which
    would shrink its frozen rows.
    """
    parameters = {name: each for name, each in network.named_parameters() if each.requires_grad}
    if not has_adapters(network):
        return [{"params": list(parameters.values())}]
    adapters = [each for name, each in parameters.items() if "lora_" in name]
    rows = [each for name, each in parameters.items() if "lora_" not in name]
    return [{"params": adapters}, *([{"params": rows, "weight_decay": 0.0}] if rows else [])]


def _train_row(weight: Tensor, row: int) -> None:
    """Lets one row of a frozen weight learn: the gradient of all others is 0, and so is AdamW's step without decay."""
    only = torch.zeros(len(weight), 1, device=weight.device, dtype=weight.dtype)
    only[row] = 1
    weight.requires_grad_(True)
    weight.register_hook(lambda gradient: gradient * only)


def merged(model: nn.Module) -> nn.Module:
    """The model itself, or where it has adapters a copy with them merged into its weights."""
    if not has_adapters(model):
        return model
    from peft.tuners.lora import LoraLayer

    # A copy: merging and taking it back would round the weights at each save.
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()  # pyright: ignore[reportCallIssue]
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` was called on it."""
    return any("lora_A" in name for name, _ in model.named_parameters())
