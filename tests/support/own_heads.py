"""Tiny checkpoints in real file form that hold a head of their own (MTP), as their makers release them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from family_models import family_model
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def head_tensors(kind: str, weights: dict[str, torch.Tensor], seed: int = 5) -> dict[str, torch.Tensor]:
    """One layer like the model's last, and what joins it to the model, under the names that vLLM 0.32 reads."""
    generator = torch.Generator().manual_seed(seed)
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers."))
    last = f"model.layers.{layers - 1}."
    layer = {name.removeprefix(last): tensor for name, tensor in weights.items() if name.startswith(last)}
    hidden = weights["model.embed_tokens.weight"].shape[1]
    if kind.startswith("qwen3"):
        shapes = {f"mtp.layers.0.{name}": tensor.shape for name, tensor in layer.items()}
        shapes |= {"mtp.fc.weight": (hidden, 2 * hidden), "mtp.norm.weight": (hidden,)}
        shapes |= {f"mtp.pre_fc_norm_{name}.weight": (hidden,) for name in ("embedding", "hidden")}
    else:
        start = f"model.layers.{layers}."
        shapes = {start + name: tensor.shape for name, tensor in layer.items()}
        shapes |= {f"{start}eh_proj.weight": (hidden, 2 * hidden), f"{start}shared_head.norm.weight": (hidden,)}
        shapes |= {f"{start}{name}.weight": (hidden,) for name in ("enorm", "hnorm")}
        rows = weights["model.embed_tokens.weight"].shape
        shapes |= {f"{start}{name}.weight": rows for name in ("embed_tokens", "shared_head.head")}
    return {name: torch.randn(tuple(shape), generator=generator) for name, shape in shapes.items()}


def make_base(kind: str, directory: Path, **settings: int) -> dict[str, torch.Tensor]:
    """Writes a checkpoint with a head; returns the head."""
    model = family_model(kind)
    model.model.save_pretrained(directory)
    model.tokenizer.save_pretrained(directory)
    weights = load_file(directory / WEIGHTS)
    head = head_tensors(kind, weights)
    save_file(weights | head, directory / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config.pop("num_mtp_layers", None)
    (directory / "config.json").write_text(json.dumps(config | settings, indent=2))
    return head
