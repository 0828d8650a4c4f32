"""Tiny multimodal checkpoints in transformers' own file form: a text model with a vision tower beside it."""

from __future__ import annotations

from pathlib import Path

import torch
from family_models import SMALL, own_settings
from tiny_models import make_tokenizer
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_TOWER = {
    "depth": 1,
    "num_hidden_layers": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "image_size": 16,
    "num_position_embeddings": 16,
    "head_dim": 8,
    "deepstack_visual_indexes": [0],
}
KINDS = ("qwen3_5", "qwen3_5_moe", "gemma3", "gemma4", "mistral3")


def _known(config, settings: dict) -> dict:
    names = set(config.to_dict()) | set(getattr(type(config), "attribute_map", {}))
    return {name: value for name, value in settings.items() if name in names}


def save_multimodal(kind: str, directory: Path) -> PreTrainedModel:
    """Writes a random checkpoint and returns the whole model."""
    whole = CONFIG_MAPPING[kind]()
    text = whole.get_text_config()
    settings = {**_known(text, SMALL), **own_settings(text.model_type), "model_type": text.model_type}
    tower = whole.vision_config or CONFIG_MAPPING["gemma4_vision"]()
    parts = {"text_config": settings, "vision_config": {**_known(tower, _TOWER), "model_type": tower.model_type}}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(type(whole)(**parts)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return model
