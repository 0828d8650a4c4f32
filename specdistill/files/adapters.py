"""PEFT adapters: finds the base model, and joins the files of the two that are no weights. Needs no torch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files import atomic
from specdistill.files.adapter_contents import content_key, digest, rows_of
from specdistill.files.cache import cache_root
from specdistill.files.checkpoint_files import TOKENIZER_VOCABULARIES, read_json

SETTINGS_FILE = "adapter_config.json"
"""Settings that peft writes beside an adapter's weights; it marks a directory as an adapter's."""
WEIGHTS_FILE = "adapter_model.safetensors"
_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE")
"""Kinds that put vectors before a prompt, which no weights of the base can hold."""
_SEPARATE = ("ADAPTION_PROMPT", "XLORA", "POLY")
"""Kinds that compute something of their own at every token."""
_TOKENIZER = (
    *TOKENIZER_VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt"),
)
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_NAMED_TEMPLATES = "additional_chat_templates"
_OTHERS = ("generation_config.json", "draft_vocabulary.json")
_FROM_HUB = ("*.json", "tokenizer*", "vocab*", "merges*", "spiece*", "*.jinja", f"{_NAMED_TEMPLATES}/*")


@dataclass(frozen=True)
class Adapter:
    """An adapter whose base is found; no weights are read."""

    name: str
    """As the user wrote it."""
    directory: Path
    """Its files."""
    base: str
    """Hub id or directory of the model that it changes."""
    settings: Mapping[str, Any] = field(repr=False)
    """Content of its adapter_config.json."""
    rows: int | None
    """Rows of the embedding that it brings along; None where it keeps the base's."""
    joined: Path
    """Directory with configuration, tokenizer and stop ids of the merged model, without weights."""
    content: str
    """Hash of both models' files: another adapter or base under the same name has another one."""

    @property
    def kind(self) -> str:
        """Name of its method, as people write it."""
        return _kind(self.settings)

    @property
    def label(self) -> str:
        """Names adapter and base by name and content."""
        place = self.directory.resolve() if is_adapter(Path(self.name)) else self.name
        return f"{place} on {self.base} ({self.content})"

    @property
    def rank(self) -> int:
        """Largest rank of its matrices; 0 where it has none."""
        ranks = self.settings.get("rank_pattern")
        return max([int(self.settings.get("r") or 0), *(ranks.values() if isinstance(ranks, dict) else ())])


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter's settings."""
    return (directory / SETTINGS_FILE).is_file()


def check(directory: Path, name: str, role: str, base: str | None = None) -> str:
    """Checks an adapter's files and finds its base, without the network.

    Args:
        directory: The adapter's files.
        name: Name that the user gave.
        role: `target` or `draft`, for messages.
        base: Base that the user named; None takes the adapter's own word.

    Returns:
        Directory or hub id of the base.

    Raises:
        ModelError: It can't be merged, its files are incomplete, or its base can't be found.
    """
    settings, where = read_json(directory / SETTINGS_FILE, role), f"--{role} {name}"
    kind = str(settings.get("peft_type")).upper()
    if kind in _PROMPTS or kind in _SEPARATE:
        why = "puts vectors before each prompt" if kind in _PROMPTS else "adds layers of its own"
        raise ModelError(
            f"{where} is a {_kind(settings)} adapter, which {why} and so can't be merged into weights; take a LoRA "
            "adapter or a whole model"
        )
    if settings.get("layer_replication"):
        raise ModelError(f"{where} repeats layers of its base; merge the two with peft, save and name the result")
    if not (directory / WEIGHTS_FILE).is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        what = "holds its weights as a pickle (adapter_model.bin), which runs code when it is loaded" if pickled else ""
        raise ModelError(
            f"{where} {what or f'is an adapter without its {WEIGHTS_FILE}'}; save it with peft's save_pretrained"
        )
    found = _base(directory, settings, where, role, base)
    if Path(found).is_dir():
        _check_base(Path(found), found, where, role)
    return found


def read(directory: Path, name: str, role: str, base: str | None = None) -> Adapter:
    """Finds an adapter's base, and joins configuration and tokenizer of the two in the cache.

    Args:
        directory, name, role, base: As in `check`.

    Raises:
        ModelError: As in `check`, or the base is on the hub and can't be reached, or is quantised.
        OutputError: The cache can't be written.
    """
    found = check(directory, name, role, base)
    settings = read_json(directory / SETTINGS_FILE, role)
    files = Path(found)
    if not files.is_dir():
        files = _from_hub(found, f"--{role} {name}", role if base is None else "")
        _check_base(files, found, f"--{role} {name}", role)
    # Of a base on the hub the commit, which names its directory, stands for the weights too.
    commit = [] if Path(found).is_dir() else [found, files.name]
    content = digest([content_key(directory), content_key(files), *commit])
    joined = cache_root() / "adapters" / f"{directory.name}-{content}"
    adapter = Adapter(name, directory, found, settings, rows_of(directory / WEIGHTS_FILE), joined, content)
    if not joined.is_dir():
        _join(adapter, files, role)
    return adapter


def from_hub(name: str) -> Path:
    """Fetches an adapter's files by hub id, or finds them in the local cache.

    Raises:
        ModelError: It can't be reached.
    """
    return _download(name, f"the adapter {name}", (*_FROM_HUB, WEIGHTS_FILE))


def _base(directory: Path, settings: Mapping[str, Any], where: str, role: str, given: str | None) -> str:
    named = settings.get("base_model_name_or_path")
    remedy = "name it with --target-base" if role == "target" else f"write its path into {SETTINGS_FILE}"
    if given is not None:
        if Path(given).is_dir():
            return str(Path(given).resolve())
        name, where_named, missing = given, f"--target-base {given}", "name a hub id or a checkpoint directory"
    elif not isinstance(named, str) or not named:
        raise ModelError(f"{where} is a {_kind(settings)} adapter that does not say of which model; {remedy}")
    else:
        for place in (directory / named, Path(named)):
            if place.is_dir():
                return str(place.resolve())
        name, where_named, missing = named, f"the base {named} of {where}", remedy
    if name.endswith(".gguf") or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{where_named} is no directory here; {missing}")
    return name


def _check_base(files: Path, base: str, where: str, role: str) -> None:
    remedy = "with --target-base" if role == "target" else f"in its {SETTINGS_FILE}"
    if is_adapter(files):
        raise ModelError(f"the base {base} of {where} is an adapter itself; merge that one first and name it {remedy}")
    if not (files / "config.json").is_file():
        raise ModelError(f"the base {base} of {where} has no config.json; name a whole model {remedy}")
    if read_json(files / "config.json", role).get("quantization_config"):
        raise ModelError(
            f"the base {base} of {where} is quantised, and an adapter can't be merged into quantised weights; name the "
            f"full-precision model {remedy}"
        )


def _from_hub(name: str, where: str, role: str) -> Path:
    remedy = ", or name it with --target-base" if role == "target" else ""
    return _download(name, f"the base {name} of {where}", _FROM_HUB, remedy)


def _download(name: str, what: str, patterns: tuple[str, ...], remedy: str = "") -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        raise ModelError(
            f"can't read {what}: {first_line(error)} (a hub id needs network access or a local cache{remedy})"
        ) from error


def _join(adapter: Adapter, base: Path, role: str) -> None:
    """Writes the merged model's files but its weights: the adapter's own where it has some, else the base's."""
    own = adapter.directory
    config = read_json(base / "config.json", role)
    if adapter.rows is not None:
        (config.get("text_config") or config)["vocab_size"] = adapter.rows
    tokenizer = own if any((own / file).is_file() for file in TOKENIZER_VOCABULARIES) else base
    templates = own if _has_template(own, role) else base
    sources = [(tokenizer, _TOKENIZER), (templates, _TEMPLATES)]
    sources += [(own if (own / file).is_file() else base, (file,)) for file in _OTHERS]
    with atomic.new_directory(adapter.joined) as directory:
        for source, names in sources:
            for file in names:
                if (source / file).is_file():
                    shutil.copyfile(source / file, directory / file)
        if (templates / _NAMED_TEMPLATES).is_dir():
            shutil.copytree(templates / _NAMED_TEMPLATES, directory / _NAMED_TEMPLATES)
        (directory / "config.json").write_text(json.dumps(config, indent=1))
        if tokenizer != templates:
            _move_template(tokenizer, templates, directory, role)


def _has_template(directory: Path, role: str) -> bool:
    files = any((directory / file).is_file() for file in _TEMPLATES) or (directory / _NAMED_TEMPLATES).is_dir()
    return files or "chat_template" in _tokenizer_settings(directory, role)


def _move_template(tokenizer: Path, templates: Path, directory: Path, role: str) -> None:
    """Takes a template inside tokenizer_config.json along where the tokenizer comes from the other side."""
    settings = _tokenizer_settings(tokenizer, role)
    settings.pop("chat_template", None)
    template = _tokenizer_settings(templates, role).get("chat_template")
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))


def _tokenizer_settings(directory: Path, role: str) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    return read_json(file, role) if file.is_file() else {}


def _kind(settings: Mapping[str, Any]) -> str:
    kind = str(settings.get("peft_type") or "PEFT")
    return {"LORA": "LoRA"}.get(kind.upper(), kind)
