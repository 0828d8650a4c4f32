"""A target and the draft that proposes for it, checked against each other before any weights are read."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from specdistill.errors import ConfigError
from specdistill.models import load, vocabulary
from specdistill.models.language_model import LanguageModel


@dataclass(frozen=True)
class ModelPair:
    """Two models that mean the same token by the same id."""

    target: LanguageModel
    draft: LanguageModel
    same_tokenizer: bool = True
    """False only where the caller asked for it: ids then mean different tokens, and text is all they share."""


def load_pair(
    target: str,
    draft: str,
    *,
    device: str = "auto",
    target_device: str | None = None,
    dtype: str = "auto",
    draft_dtype: torch.dtype | None = None,
    other_tokenizer: bool = False,
    target_weights: bool = True,
    keep_target: str = "whole",
    say=print,
) -> ModelPair:
    """Finds both, proves that their tokenizers agree, then loads both sets of weights.

    Args:
        target: Hub id, directory or .gguf file.
        draft: Likewise.
        device: A torch device, or `auto`.
        target_device: Of the target, if not the draft's.
        dtype: A torch dtype's name, or `auto`; see `resolve_dtype`.
        draft_dtype: Of the draft, if not the target's: training wants float32 whatever the target runs in.
        other_tokenizer: Allow different tokenizers, for methods that learn from text.
        target_weights: False leaves the target a shell (`load.load_shell`), where its labels come from elsewhere.
        keep_target: How it lies in memory; see `load.load_model`.
        say: Where slow steps announce themselves.

    Raises:
        ModelError: One of them can't be loaded.
        IncompatibleModelsError: Their tokenizers differ and that is not allowed.
    """
    sources = [load.find(target, "target", say), load.find(draft, "draft", say)]
    same = sources[0].tokenizer.get_vocab() == sources[1].tokenizer.get_vocab()
    if not (same or other_tokenizer):
        vocabulary.check_same_vocabulary(sources[0].tokenizer, sources[1].tokenizer, target, draft)
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    return ModelPair(
        load.load_model(sources[0], "target", device=target_device or where, dtype=kind, keep=keep_target)
        if target_weights
        else load.load_shell(sources[0]),
        load.load_model(sources[1], "draft", device=where, dtype=draft_dtype or kind),
        same,
    )


def resolve_device(device: str) -> str:
    """`auto` is the GPU where there is one.

    Raises:
        ConfigError: torch does not know or have the device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} can't be used: {str(error).splitlines()[0]}") from error
    return device


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU, where bfloat16 is slower beyond one token."""
    if dtype == "auto":
        return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
