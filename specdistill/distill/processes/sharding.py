"""Weights in shares: each rank holds a part of every tensor and gathers a layer when it runs (FSDP2).

The draft is sharded as a whole, with its gradients and optimiser state: inside the loss module's forward its weights
are there as usual. Everything else that reads them (rollouts, held-out scores, saving) does so inside
`Shards.gathered`, where the whole draft is in memory and no forward pass talks to the other ranks: those may then take
as many passes as their answers need. Of a frozen target only the decoder layers are sharded; a pass through it is a
collective, so every rank makes the same number of them.

torch's own `fully_shard` does this, under plain `accelerate launch --multi_gpu`. accelerate's FSDP mode is not used: it
refuses CPU ranks, so that no test here could run it, and it moves parameters of modules that a loss reads by itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from specdistill.distill.processes.ranks import Ranks, join
from specdistill.errors import ConfigError
from specdistill.models import LanguageModel, families
from specdistill.models.pair import resolve_device


def check_launch() -> None:
    """Refuses launch modes in which accelerate would shard by itself.

    Raises:
        ConfigError: Naming what to use instead.
    """
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"accelerate's {name} mode is not used here; launch with --multi_gpu and pass --shard draft, target or "
                "both, which shards like FSDP2 and ZeRO-3"
            )


def join_processes(device: str, shard: str, *, uses_engine: bool) -> Ranks:
    """Joins the processes that train together.

    Args:
        device: --device.
        shard: --shard.
        uses_engine: Whether another engine writes the draft's own answers.

    Raises:
        ConfigError: Their number does not allow the settings, or the device can't be used.
    """
    resolve_device(device)
    check_launch()
    ranks = join(device)
    if shard != "none" and ranks.world == 1:
        raise ConfigError("--shard splits weights among processes; start several with accelerate launch --multi_gpu")
    if uses_engine and ranks.world > 1:
        raise ConfigError("--rollout-engine vllm runs in one process; train without accelerate launch")
    return ranks


class Shards:
    """A sharded loss module, or a whole one: the same handle for both.

    Args:
        module: The loss with the draft inside.
        ranks: Who shares it.
        draft: Its layers are gathered one by one; None leaves the module whole.
    """

    def __init__(self, module: nn.Module, ranks: Ranks, draft: LanguageModel | None = None) -> None:
        self._parts: list[Any] = []
        if draft is None:
            return
        from torch.distributed.fsdp import fully_shard

        mesh = _mesh(ranks)
        layers = families.decoder_layers(draft.base_model, draft.config)
        self._layers = [fully_shard(layer, mesh=mesh) for layer in layers]
        self._root: Any = fully_shard(module, mesh=mesh)
        self._parts = [self._root, *self._layers]

    @property
    def sharded(self) -> bool:
        return bool(self._parts)

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """The whole draft in every rank's memory while the block runs. All ranks enter and leave it together."""
        for part in self._parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for part in self._parts:
                part.set_reshard_after_forward(part is not self._parts[0], recurse=False)
                part.reshard()

    def plain(self, draft: LanguageModel) -> LanguageModel:
        """The draft as an ordinary model to save, inside `gathered`: a sharded module's state dict holds its shards."""
        if not self._parts:
            return draft
        model = AutoModelForCausalLM.from_config(draft.config, dtype=draft.model.dtype)
        names = dict(draft.model.named_parameters())
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(names[name])
        return dataclasses.replace(draft, model=model)

    @contextlib.contextmanager
    def summing_later(self) -> Iterator[None]:
        """Gradients stay on their rank while the block runs: a later pass of the step sums them up."""
        self._root.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            self._root.set_requires_gradient_sync(True)


def shard_target(target: LanguageModel, ranks: Ranks) -> None:
    """Shards a frozen target's decoder layers over the ranks, in place; head, embedding and norm stay whole.

    Args:
        target: On the CPU, or on its ranks' devices: a layer moves to the device when it is sharded.
        ranks: Who shares it.
    """
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    mesh = _mesh(ranks)
    for layer in families.decoder_layers(target.base_model, target.config):
        part: Any = fully_shard(layer, mesh=mesh)
        # Gathered buffers that are first made in inference mode could not be filled outside of it.
        part.unshard()
        part.reshard()
    for tensor in (*target.model.parameters(), *target.model.buffers()):
        if not isinstance(tensor, DTensor):
            tensor.data = tensor.data.to(ranks.device or "cpu")


def full_tensor(tensor: Tensor) -> Tensor:
    """A shard's whole tensor (all ranks ask for it together), or the tensor itself."""
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distributed_like(values: Tensor, pattern: Tensor) -> Tensor:
    """Values in the pattern's form: its device, and its shards where it is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(pattern, DTensor):
        return values.to(pattern.device)
    return distribute_tensor(values.to(pattern.device), pattern.device_mesh, pattern.placements)


def _mesh(ranks: Ranks):
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(torch.device(ranks.device or "cpu").type, (ranks.world,))
