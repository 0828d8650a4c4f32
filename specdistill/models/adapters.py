"""Merges a PEFT adapter into its base in memory, and writes the merged model for a server."""

from __future__ import annotations

import importlib.util
import re
import shutil
import warnings
from pathlib import Path
from typing import cast

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from transformers import PreTrainedModel

from specdistill.errors import ModelError, first_line
from specdistill.files import adapters, atomic, checkpoint_files
from specdistill.files.adapters import Adapter
from specdistill.models import memory
from specdistill.models.hub_files import cached
from specdistill.models.language_model import LanguageModel
from specdistill.models.quiet import quiet_transformers

_WRAPPED = re.compile(r"\.(modules_to_save|original_module)\.")


def check_name(name: str, role: str, base: str | None) -> bool:
    """Whether a name is a directory that holds an adapter, which then can be merged here; loads nothing.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        base: Base that the user named.

    Raises:
        ModelError: The adapter can't be merged, or a base is named for what is none.
    """
    if not adapters.is_adapter(Path(name)):
        if base is not None and Path(name).exists():
            raise no_adapter(name, base)
        return False
    adapters.check(Path(name), name, role, base)
    _check_installed(f"--{role} {name}")
    return True


def on_hub(name: str, *, ask: bool = True) -> bool:
    """Whether a hub id is an adapter's; its settings are then in the local cache."""
    return not Path(name).exists() and cached(name, adapters.SETTINGS_FILE, ask_hub=ask) is not None


def find(name: str, role: str, base: str | None) -> Adapter | None:
    """Finds an adapter and its base; None where the name is a whole model's, or of a hub id that was not asked yet.

    Raises:
        ModelError: The adapter can't be merged, or its base can't be found.
    """
    if adapters.is_adapter(Path(name)):
        return adapters.read(Path(name), name, role, base)
    try:
        known = None if Path(name).exists() else try_to_load_from_cache(name, adapters.SETTINGS_FILE)
    except HFValidationError:
        # No hub id at all, which whoever loads it says better.
        return None
    return fetch(name, role, base) if isinstance(known, str) else None


def fetch(name: str, role: str, base: str | None) -> Adapter:
    """Finds an adapter by its hub id, and its base; see `find`."""
    _check_installed(f"--{role} {name}")
    return adapters.read(adapters.from_hub(name), name, role, base)


def no_adapter(name: str, base: str) -> ModelError:
    """The error that refuses a base for a target that is a whole model."""
    return ModelError(f"--target-base {base} has no effect: --target {name} is no adapter; leave it away")


def check_loadable(adapter: Adapter, role: str, keep: str) -> None:
    """Checks the base's weights, and that a merged model may be kept as asked.

    Args:
        adapter: The adapter.
        role: `target` or `draft`, for messages.
        keep: As in `load.load_model`.

    Raises:
        ModelError: Weights are missing or pickles, or would be quantised before the adapter is merged.
    """
    base = Path(adapter.base)
    if base.is_dir():
        where = f"{adapter.name}: its base {base}"
        checkpoint_files.check_weights(base, where, role)
        checkpoint_files.refuse_integers(base, f"--{role} {where}")
    if keep in memory.QUANTISED:
        raise ModelError(
            f"--target-memory {keep} quantises weights before the adapter could be merged into them; write the merged "
            "model with 'specdistill export --merged-target DIRECTORY', and name that as --target"
        )


def _check_installed(where: str) -> None:
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"{where} is an adapter, which needs the package peft: pip install 'specdistill[lora]'")


def merge(model: PreTrainedModel, adapter: Adapter, where: str) -> PreTrainedModel:
    """The base with the adapter's changes in its weights.

    Args:
        model: The base; it is changed.
        adapter: The adapter.
        where: The model as messages name it, such as `--target NAME`.

    Raises:
        ModelError: The adapter does not fit the base, or can't be merged.
    """
    if adapter.rows is not None and adapter.rows != cast(Tensor, model.get_input_embeddings().weight).shape[0]:
        model.resize_token_embeddings(adapter.rows, mean_resizing=False)
    try:
        merged, missing, left_over = _merged(model, adapter.directory)
    except Exception as error:
        raise ModelError(
            f"{where}: the {adapter.kind} adapter can't be merged into {adapter.base}: {first_line(error)}; is that "
            "the model that it was trained on?"
        ) from error
    for names, what in ((missing, "lacks"), (left_over, f"holds, without a place for it in {adapter.base},")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ModelError(
                f"{where} {what} {names[0]}{more}; name the base that it was trained on, or save the adapter again"
            )
    return _tied_as_it_is(merged)


def _merged(model: PreTrainedModel, directory: Path) -> tuple[PreTrainedModel, list[str], list[str]]:
    from peft import PeftConfig, PeftModel
    from peft.utils.save_and_load import load_peft_weights

    with quiet_transformers(), warnings.catch_warnings():
        # What peft warns of is refused below, or is about training.
        warnings.simplefilter("ignore")
        config = PeftConfig.from_pretrained(str(directory))
        wrapped = PeftModel(model, config)
        result = wrapped.load_adapter(str(directory), "default", torch_device="cpu")
        stored = load_peft_weights(str(directory), device="cpu")
        missing = [*result.missing_keys, *_unfilled(wrapped, stored)]
        _untie_what_changes(model)
        merged = cast(PreTrainedModel, wrapped.merge_and_unload(safe_merge=True))
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    # Of an embedding of another size peft stores the wrapper's parts too, beside the weights that count.
    left_over = [key for key in result.unexpected_keys if not _WRAPPED.search(key)]
    # peft has frozen the base, which may be a draft to train.
    return merged.requires_grad_(True), missing, left_over


def _untie_what_changes(model: PreTrainedModel) -> None:
    """Gives the head weights of its own where an adapter changes only it or the embedding: merging writes in place."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    embedding, head = (cast(torch.nn.Linear, getattr(layer, "base_layer", layer)) for layer in layers)
    if [embedding, head] != layers and embedding.weight is head.weight:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())


def _unfilled(wrapped: torch.nn.Module, stored: dict[str, torch.Tensor]) -> list[str]:
    """Modules that were to be saved whole, and of which the file holds nothing."""
    from peft.utils.other import ModulesToSaveWrapper

    names = [name for name, module in wrapped.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return [name for name in names if not any(key.startswith(f"{name}.") for key in stored)]


def _tied_as_it_is(model: PreTrainedModel) -> PreTrainedModel:
    """Says in the configuration whether embedding and head are still one: an adapter may have changed one of them."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    if getattr(config, "tie_word_embeddings", False) and head is not None:
        ours, theirs = cast(Tensor, head.weight), cast(Tensor, model.get_input_embeddings().weight)
        if ours is not theirs and torch.equal(ours, theirs):
            model.tie_weights()
        elif ours is not theirs:
            config.tie_word_embeddings = model.config.tie_word_embeddings = False
    return model


def save_merged(model: LanguageModel, directory: Path) -> None:
    """Writes a merged model as a plain checkpoint that any server loads.

    Args:
        model: A model with an adapter in its weights, as `load.load_model` returned it.
        directory: A new directory.

    Raises:
        OutputError: The disk is full or the directory can't be written.
    """
    assert model.directory is not None, "an adapter's files are joined in a directory"
    with atomic.new_directory(directory) as temporary:
        model.model.save_pretrained(temporary)
        for file in model.directory.iterdir():
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            if file.name != "config.json":
                copy(file, temporary / file.name)
        for file in temporary.rglob("*.safetensors"):
            file.chmod(0o666 & ~atomic.umask())
