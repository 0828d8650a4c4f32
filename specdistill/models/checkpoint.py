"""Saves a draft as a plain save_pretrained checkpoint, which serving engines load as it is."""

from __future__ import annotations

import copy
import os
import shutil
import tempfile
from pathlib import Path
from typing import cast

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from specdistill.files import atomic
from specdistill.files.head_record import CUT_RECORD_FILE
from specdistill.files.parallel_drafting import ParallelDrafting
from specdistill.models import families, vocabulary
from specdistill.models.eagle3 import save_head
from specdistill.models.head_draft import HeadModel
from specdistill.models.language_model import LanguageModel
from specdistill.models.load import ModelSource
from specdistill.models.mask_token import embedding_weight

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""Every name that a tokenizer's files may have."""
CHAT_TEMPLATES_DIRECTORY = "additional_chat_templates"
"""Directory of the chat templates that have names, such as tool_use.jinja."""


def is_fresh_cut(draft: LanguageModel) -> bool:
    """Whether the draft comes directly from init-draft. Training writes to another directory, without the record."""
    return draft.directory is not None and (draft.directory / CUT_RECORD_FILE).is_file()


def save_draft(
    draft: LanguageModel, target: LanguageModel, directory: Path, weights: torch.nn.Module | None = None
) -> None:
    """Writes weights, config, generation config and the target's own tokenizer files.

    Every file is complete before it gets its final name, and the weights come last. So an older checkpoint in the
    directory stays usable until the new one is complete.

    Args:
        draft: The draft, saved in its `stored_dtype`. Embedding and head are padded or trimmed to as many rows as the
            target's head has.
        target: Source of the vocabulary size, the tokenizer files (copied byte for byte) and the stop ids.
        directory: An existing directory.
        weights: Module to save in place of the draft's model, such as one with its adapters merged.

    Raises:
        OutputError: The disk is full or the directory can't be written.
    """
    if isinstance(draft, HeadModel):
        _save_head(draft, target, directory)
        return
    model, dtype = cast(PreTrainedModel, weights or draft.model), draft.stored_dtype or draft.model.dtype
    wanted_rows, drafting = target.head_weight.shape[0], draft.parallel
    if drafting is not None:
        wanted_rows = max(wanted_rows, drafting.mask_id + 1)
    if draft.head_weight.shape[0] != wanted_rows or dtype != model.dtype:
        model = copy.deepcopy(model)
        _resize_keeping_mask(model, wanted_rows, target.vocab_size, drafting)
        # transformers' own annotation of `to` does not take a dtype.
        torch.nn.Module.to(model, dtype)
    vars(model.config).pop("quantization_config", None)
    model.generation_config = assisted_generation_config(target)
    with atomic.output_errors(directory):
        temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
        try:
            model.save_pretrained(temporary)
            for name, source in tokenizer_files(target).items():
                (temporary / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source, temporary / name)
            files = [path for path in temporary.rglob("*") if path.is_file()]
            for file in sorted(files, key=lambda path: path.suffix == ".safetensors"):
                _publish(file, directory / file.relative_to(temporary))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if draft.kept_ids is not None:
        vocabulary.save_kept_ids(directory, draft.kept_ids, f"the most frequent tokens of {target.name}")


def _save_head(draft: HeadModel, target: LanguageModel, directory: Path) -> None:
    """Writes a head in the flat format, with the target's tokenizer files."""
    with atomic.output_errors(directory):
        for name, source in tokenizer_files(target).items():
            (directory / name).parent.mkdir(exist_ok=True)
            atomic.write_bytes(directory / name, source.read_bytes())
    save_head(draft.head, directory, families.num_layers(target.config), draft.stored_dtype)


def _resize_keeping_mask(model: PreTrainedModel, rows: int, real_size: int, drafting: ParallelDrafting | None) -> None:
    """Resizes embedding and head; a mask token among the padding keeps its embedding, which padding has no use for."""
    if drafting is None:
        vocabulary.resize_to(model, rows, real_size)
        return
    kept = embedding_weight(model)[drafting.mask_id].detach().clone()
    vocabulary.resize_to(model, rows, real_size)
    with torch.no_grad():
        embedding_weight(model)[drafting.mask_id] = kept


def assisted_generation_config(target: LanguageModel) -> GenerationConfig:
    """Generation config of a draft for transformers' assisted generation.

    Penalties and filters of the target's file are left out, because with them even an identical draft is rejected.
    """
    stop = sorted(target.eos_token_ids)
    original = target.model.generation_config
    assert original is not None
    return GenerationConfig(
        bos_token_id=original.bos_token_id,
        eos_token_id=stop[0] if len(stop) == 1 else stop,
        pad_token_id=original.pad_token_id,
        num_assistant_tokens=4,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.4,
    )


def tokenizer_files(target: LanguageModel | ModelSource) -> dict[str, Path]:
    """Finds the target's tokenizer files in its directory or in the hub's local cache; name inside it -> path."""
    files = {}
    for name in (*TOKENIZER_FILES, *_named_templates(target)):
        if target.directory is not None:
            path = target.directory / name
        else:
            cached = cached_file(
                target.name,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
            path = None if cached is None else Path(cached)
        if path is not None and path.is_file():
            files[name] = path
    return files


def _named_templates(target: LanguageModel | ModelSource) -> list[str]:
    """Files of the chat templates beside the default one, of which the tokenizer knows the names."""
    templates = target.tokenizer.chat_template
    names = sorted(templates) if isinstance(templates, dict) else []
    return [f"{CHAT_TEMPLATES_DIRECTORY}/{name}.jinja" for name in names if name != "default"]


def _publish(source: Path, destination: Path) -> None:
    destination.parent.mkdir(exist_ok=True)
    atomic.sync(source)
    # safetensors makes private files; a checkpoint gets the permissions of any new file, since servers read it.
    source.chmod(0o666 & ~atomic.umask())
    os.replace(source, destination)
