"""Tiny PEFT adapters in the real file form, and the model that each stands for before it is merged."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from wild_checkpoints import change_json


def make_adapter(
    base: Path, directory: Path, *, rows: int | None = None, named: str | None = None, seed: int = 3, **settings
) -> PeftModel:
    """Saves a LoRA adapter of random weights; the unmerged model, which says what its logits must be.

    Args:
        base: A saved checkpoint.
        directory: Where the adapter goes.
        rows: Rows that the embedding is resized to before training, for added tokens.
        named: base_model_name_or_path in its settings; None leaves what peft writes.
        seed: Of the weights.
        **settings: Of `LoraConfig`.
    """
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    tuned = get_peft_model(model, LoraConfig(**(defaults | {"init_lora_weights": False} | settings)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in tuned.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))
    tuned.save_pretrained(str(directory))
    if named is not None:
        change_json(directory / "adapter_config.json", base_model_name_or_path=named)
    return tuned.eval()
