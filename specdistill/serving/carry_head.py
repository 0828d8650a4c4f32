"""Copies a base model's own head (MTP) beside the weights of a fine-tune that lost it, into a new directory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files import adapters, atomic, checkpoint_files
from specdistill.files.stored_tensors import (
    StoredTensor,
    stored_tensors,
    tensor_bytes,
    weight_shards,
)
from specdistill.progress import Progress, Quiet
from specdistill.serving import head_files
from specdistill.serving.carry_config import CarryHeadConfig

_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
"""Settings that name the shapes that a head was made for."""
_TRAINERS = ("optimizer", "scheduler", "rng_state", "training_args", "trainer_state")
"""Beginnings of the names of a trainer's own files, which are no part of the model."""
_WEIGHTS = ("*.safetensors", checkpoint_files.SHARD_INDEX)
_OTHERS = ("*.json", "*.jinja", "*.txt", "*.model", "tokenizer*")


@dataclass(frozen=True)
class CarriedHead:
    """A target that has its head again."""

    path: str
    """Directory that was written."""
    tensors: dict[str, str]
    """Tensor of the head -> file of `path` that holds it."""
    parameters: int
    """Number of the head's parameters."""
    settings: dict[str, Any]
    """Settings of config.json that were taken from the base."""


@dataclass(frozen=True)
class _Side:
    """One of the two checkpoints, by its files."""

    role: str
    name: str
    directory: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def text(self) -> Mapping[str, Any]:
        return head_files.text_config(self.config)

    @property
    def head(self) -> list[str]:
        return head_files.head_names(self.tensors, self.config)


def carry_head(config: CarryHeadConfig, progress: Progress | None = None) -> CarriedHead:
    """Writes the target's files and the base's head to a new directory, all at once or not at all.

    Args:
        config: Base, target and output.
        progress: Where remarks go.

    Returns:
        What was carried.

    Raises:
        ModelError: A checkpoint can't be read, the base has no head, the target has one, or the two don't fit.
        OutputError: The output holds files, or can't be written.
    """
    say, output = (progress or Quiet()).say, Path(config.output)
    atomic.check_new_directory(output)
    base, target = _read(config.base, "base", weights="head"), _read(config.target, "target", weights="all")
    _check_heads(base, target)
    _check_fit(base, target)
    names = _renamed(base, target)
    say(f"carrying {len(names)} tensors of {base.name}'s head to {target.name}")
    with atomic.new_directory(output, is_result=True) as directory:
        written = _copy(target, base, names, directory)
        settings = _write_config(base, target, directory)
    size = sum(base.tensors[name].size for name in names)
    return CarriedHead(config.output, written, size, settings)


def _read(name: str, role: str, *, weights: str) -> _Side:
    directory = Path(name)
    if directory.is_file():
        raise ModelError(f"--{role} {name} is a file; carry-head takes checkpoint directories and hub ids, no .gguf")
    if not directory.is_dir():
        checkpoint_files.check_hub_id(name, role)
        directory = _fetched(name, role, weights)
    if adapters.is_adapter(directory):
        raise ModelError(
            f"--{role} {name} is an adapter; write the merged model first with 'specdistill export --merged-target', "
            "and name that one"
        )
    checkpoint_files.check_directory(directory, name, role)
    checkpoint_files.check_weights(directory, name, role)
    tensors = stored_tensors(directory, role) or {}
    return _Side(role, name, directory, head_files.read_config(directory), tensors)


def _fetched(name: str, role: str, weights: str) -> Path:
    """Downloads a hub id: all of it, or of the base only the files that hold the head."""
    from huggingface_hub import snapshot_download

    try:
        directory = Path(snapshot_download(name, allow_patterns=[*_OTHERS, checkpoint_files.SHARD_INDEX]))
        patterns = list(_WEIGHTS)
        index = directory / checkpoint_files.SHARD_INDEX
        if weights == "head" and index.is_file() and (directory / "config.json").is_file():
            files = checkpoint_files.weight_map(index, role)
            patterns = sorted({files[each] for each in head_files.head_names(files, head_files.read_config(directory))})
        return Path(snapshot_download(name, allow_patterns=[*patterns, *_OTHERS, checkpoint_files.SHARD_INDEX]))
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"can't read --{role} {name}: {checkpoint_files.why_no_files(name, error)}") from error


def _check_heads(base: _Side, target: _Side) -> None:
    if not base.head:
        claim = head_files.claim(base.config)
        why = "" if claim is None else f" although {claim}"
        raise ModelError(
            f"--base {base.name} holds no head of its own{why}; name the model that was released with one, before any "
            "fine-tuning"
        )
    if target.head:
        raise ModelError(
            f"--target {target.name} holds a head already ({len(target.head)} tensors, such as {target.head[0]}); "
            "there is nothing to carry"
        )


def _check_fit(base: _Side, target: _Side) -> None:
    """Refuses a head that was made for other shapes, other layers or another number format."""
    types = [str(side.text.get("model_type")).removesuffix("_text") for side in (base, target)]
    if types[0] != types[1]:
        raise ModelError(
            f"--base {base.name} is of type {types[0]}, and --target {target.name} of type {types[1]}; name the model "
            "that the target was fine-tuned from as --base"
        )
    for name in _SIZES:
        ours, theirs = base.text.get(name), target.text.get(name)
        # What one config.json leaves to its type's default, the other may spell out.
        if None not in (ours, theirs) and ours != theirs:
            raise ModelError(f"the head does not fit: {name} is {ours} in the base and {theirs} in the target")
    methods = [_quantisation(side.config) for side in (base, target)]
    if methods[0] != methods[1]:
        raise ModelError(
            f"the base's weights are {methods[0]} and the target's {methods[1]}; name a base of the target's format"
        )
    vocabularies = [side.text.get("vocab_size") for side in (base, target)]
    roots = [head_files.decoder_root(side.tensors) for side in (base, target)]
    for name, tensor in base.tensors.items():
        if not tensor.shape:
            continue
        rows = tensor.shape[0] == vocabularies[0] != vocabularies[1]
        if name in base.head and rows:
            raise ModelError(
                f"the head does not fit: {name} has a row for each of the base's {vocabularies[0]} tokens, and the "
                f"target has {vocabularies[1]}"
            )
        other = target.tensors.get(_at(name, *roots))
        if other is not None and other.shape != tensor.shape and not rows:
            shapes = f"{list(tensor.shape)} in the base and {list(other.shape)} in the target"
            raise ModelError(f"the head does not fit: {name} is {shapes}")


def _quantisation(config: Mapping[str, Any]) -> str:
    settings = config.get("quantization_config") or head_files.text_config(config).get("quantization_config")
    return f"quantised by {settings.get('quant_method')}" if isinstance(settings, Mapping) else "not quantised"


def _at(name: str, base_root: str, target_root: str) -> str:
    """A tensor's name in the target: the text part of a multimodal model has another beginning than the model alone."""
    return target_root + name.removeprefix(base_root) if base_root and name.startswith(base_root) else name


def _renamed(base: _Side, target: _Side) -> dict[str, str]:
    """Name of each tensor of the head in the base -> in the output."""
    roots = [head_files.decoder_root(side.tensors) for side in (base, target)]
    return {name: _at(name, *roots) for name in base.head}


def _copy(target: _Side, base: _Side, names: dict[str, str], directory: Path) -> dict[str, str]:
    """Copies the target's files, adds one file of weights, and lists all weights; the head's part of the list."""
    shards = weight_shards(target.directory, "target")
    index = checkpoint_files.SHARD_INDEX
    for file in sorted(target.directory.iterdir()):
        is_other = file.name not in (*shards, index, "config.json")
        if file.is_file() and is_other and not file.name.startswith((".", *_TRAINERS)):
            shutil.copyfile(file, directory / file.name)
    count = len(shards) + 1
    renamed = {shard: f"model-{place:05d}-of-{count:05d}.safetensors" for place, shard in enumerate(shards, 1)}
    for shard, name in renamed.items():
        shutil.copyfile(target.directory / shard, directory / name)
    added = f"model-{count:05d}-of-{count:05d}.safetensors"
    _save(base, names, directory / added)
    listed = {name: renamed[tensor.file] for name, tensor in target.tensors.items()}
    head = dict.fromkeys(names.values(), added)
    metadata: dict[str, Any] = {}
    if (target.directory / index).is_file():
        known = json.loads((target.directory / index).read_text(encoding="utf-8-sig")).get("metadata")
        metadata = dict(known) if isinstance(known, dict) else {}
    if isinstance(metadata.get("total_parameters"), int):
        metadata["total_parameters"] += sum(base.tensors[name].size for name in names)
    metadata["total_size"] = sum(tensor_bytes(directory / file) for file in (*renamed.values(), added))
    whole = {"metadata": metadata, "weight_map": dict(sorted((listed | head).items()))}
    (directory / index).write_text(json.dumps(whole, indent=2) + "\n")
    return head


def _save(base: _Side, names: dict[str, str], path: Path) -> None:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    tensors = {}
    for file in sorted({base.tensors[name].file for name in names}):
        try:
            with safe_open(base.directory / file, framework="pt") as content:
                for name, renamed in names.items():
                    if base.tensors[name].file == file:
                        tensors[renamed] = content.get_tensor(name)
        except SafetensorError as error:
            where = f"--base {base.directory / file}"
            raise ModelError(f"can't read {where}: {first_line(error)}; download the file again") from error
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes private files; servers read these.
    path.chmod(0o666 & ~atomic.umask())


def _write_config(base: _Side, target: _Side, directory: Path) -> dict[str, Any]:
    """Writes the target's config.json with the base's settings of the head; returns these."""
    written = json.loads(json.dumps(target.config))
    text = written.get("text_config")
    text = text if isinstance(text, dict) else written
    carried = head_files.settings(base.text)
    text.update(carried)
    if base.text is not base.config:
        outside = head_files.settings(base.config)
        written.update(outside)
        carried = outside | carried
    (directory / "config.json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")
    return carried
