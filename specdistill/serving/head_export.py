"""Writes a head as one engine wants it: the flat EAGLE-3 files, or llama.cpp's file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from specdistill.errors import ConfigError
from specdistill.files import run_settings
from specdistill.files.head_record import HeadRecord
from specdistill.models import families, load
from specdistill.models.checkpoint import save_draft
from specdistill.models.eagle3 import default_aux_layers
from specdistill.models.head_draft import HeadModel, load_head_model
from specdistill.models.pair import FoundPair
from specdistill.serving import head_gguf
from specdistill.serving.check_config import CheckConfig
from specdistill.serving.export_config import ExportConfig
from specdistill.serving.gguf_header import read_header
from specdistill.serving.merging import served_pair

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_head(config: ExportConfig, pair: FoundPair, output: Path) -> tuple[list[str], CheckConfig]:
    """Writes a head's files.

    Args:
        config: The format and the number format.
        pair: The target and the head.
        output: Directory or file to write.

    Returns:
        Differences from the head as it was, and what to check of the files.

    Raises:
        ConfigError: The format takes no heads, or not one that reads such layers.
        ModelError: The head can't be read.
    """
    if config.format == "transformers":
        raise ConfigError(
            f"--draft {config.draft} is a head, which transformers can't assist with; --format vllm, sglang and gguf "
            "write it"
        )
    target = load.load_shell(pair.target)
    head = load_head_model(pair.draft, "draft", target, "cpu", torch.float32)
    _check_layers(config, head, families.num_layers(target.config))
    changes = [f"reads layers {', '.join(map(str, head.head.aux_layers))} of the target"]
    changes.append(f"proposes {head.head.draft_vocab_size} of {target.vocab_size} ids")
    if config.format == "gguf":
        kind = "float16" if config.files.type == "auto" else config.files.type
        head_gguf.write(head, Path(config.served_gguf), output, kind)
        changes.append(f"weights in {kind}, tokenizer of {config.served_gguf}")
        changes += _served_model(config, pair)
        if pair.target.adapter is not None:
            changes.append(f"{config.served_gguf} must hold {pair.target.name} merged into its base")
        return changes, CheckConfig.flat(target=config.served_gguf, draft=config.output)
    if config.files.type != "auto":
        head = dataclasses.replace(head, stored_dtype=DTYPES[config.files.type])
        changes.append(f"weights in {config.files.type}")
    save_draft(head, target, output)
    run_settings.copy(Path(config.draft), output)
    return changes, served_pair(config, pair.target, changes)


def _served_model(config: ExportConfig, pair: FoundPair) -> list[str]:
    """Names the target of the head, which the served file must hold; a file of other sizes is none of it."""
    served = config.served_gguf
    if served == config.target:
        return []
    found = read_header(Path(served), "target-gguf").config
    fields: Any = pair.target.config
    wanted = {"num_hidden_layers": families.num_layers(fields), "hidden_size": fields.hidden_size}
    made_for = HeadRecord.read(pair.draft.directory).target or config.target
    names = {"num_hidden_layers": "layers", "hidden_size": "numbers in a hidden state"}
    for key, value in wanted.items():
        if found.get(key) not in (None, value):
            return [
                f"BEWARE: {served} has {found[key]} {names[key]}, and the head was made for {made_for}, which has "
                f"{value}: serve the head with a .gguf file of that model only"
            ]
    return [] if pair.target.adapter is not None else [f"made for {made_for}: {served} must hold that model"]


def _check_layers(config: ExportConfig, head: HeadModel, layers: int) -> None:
    usual = default_aux_layers(layers)
    if config.format == "sglang" and (head.head.aux_layers != usual or layers < 7):
        read = ", ".join(map(str, head.head.aux_layers))
        raise ConfigError(
            f"--draft {config.draft} reads layers {read} of the target; SGLang counts layers that a "
            "config.json names in another way, so only heads of the usual layers 2, L/2 and L-3 are written for it"
        )
