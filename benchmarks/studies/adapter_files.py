"""Writes what a run with --lora-rank changed as a PEFT adapter: `train-draft` itself saves merged weights."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from specdistill.files.adapters import WEIGHTS_FILE


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (rank x inputs) and B (outputs x rank) with B A = `change`, as far as that has at most this rank."""
    left, values, right = torch.linalg.svd(change.float(), full_matrices=False)
    root = values[:rank].sqrt()
    return root[:, None] * right[:rank], left[:, :rank] * root


def save_factors(base: Path, tuned: Path, output: Path, rank: int, base_name: str) -> None:
    """Writes the adapter that turns a checkpoint into one that was trained with --lora-rank.

    Args:
        base: Checkpoint directory before training.
        tuned: The run's output: the same weights, some of them with a change of low rank.
        output: Directory for the adapter.
        rank: The run's --lora-rank.
        base_name: Base that the adapter names: a hub id or directory.
    """
    before, after = (load_file(directory / "model.safetensors") for directory in (base, tuned))
    weights: dict[str, Tensor] = {}
    for name in sorted(before.keys() & after.keys()):
        change = after[name].float() - before[name].float()
        if change.any():
            module = name.removesuffix(".weight")
            for part, matrix in zip("AB", factors(change, rank), strict=True):
                weights[f"base_model.model.{module}.lora_{part}.weight"] = matrix.to(torch.float16).contiguous()
    modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in weights})
    # alpha = rank: B A counts as it is.
    settings = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, task_type="CAUSAL_LM", inference_mode=True)
    settings.base_model_name_or_path = base_name
    output.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(output))
    save_file(weights, output / WEIGHTS_FILE, metadata={"format": "pt"})
