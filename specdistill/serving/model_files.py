"""The files of a model that an engine reads before its weights: configuration, tokenizer, and which files exist.

Read with json and `tokenizers` alone: transformers would take three seconds to be imported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from specdistill.errors import ModelError, first_line
from specdistill.files import adapters, checkpoint_files
from specdistill.files.head_architectures import draft_kind
from specdistill.files.stored_tensors import stored_tensors
from specdistill.serving import head_files
from specdistill.serving.gguf_header import read_header
from specdistill.serving.head_files import OwnHead

_STATES = ("linear_attention", "conv", "hybrid", "hybrid_sliding", "mamba", "recurrent")
"""Kinds of layers that keep a state."""
_STATE_SETTINGS = ("mamba_d_state", "ssm_state_size", "state_size", "conv_L_cache", "attention_hidden_size")
"""Settings that only configurations with such layers have, where they don't name each layer's kind."""


@dataclass(frozen=True)
class TokenTable:
    """A tokenizer's ids."""

    tokens: dict[int, str]
    """Id -> token, added ones too."""
    kind: str
    """BPE, Unigram, WordPiece or WordLevel."""
    special: dict[str, int | None]
    """bos_token and eos_token -> id, None where there is none."""
    flags: dict[str, bool]
    """add_bos_token and add_eos_token, where the files set them."""


@dataclass(frozen=True)
class ModelFiles:
    """One side of a pair."""

    name: str
    """As the user wrote it."""
    directory: Path
    """Where its files are; for a hub id, the local cache."""
    config: dict[str, Any]
    """config.json; for a multimodal model the part of the text model."""
    tokenizer: TokenTable | None
    """None where its files are missing or broken."""
    tokenizer_problem: str = ""
    """Why the tokenizer could not be read."""
    from_hub: bool = False
    """Whether it is a hub id: its weights are not fetched, and their format is not checked."""
    is_gguf: bool = False
    """Whether it is one .gguf file, which holds all of these."""
    adapter: adapters.Adapter | None = None
    """The adapter whose merged form this is; None for a whole model."""
    whole_config: dict[str, Any] = field(default_factory=dict)
    """config.json with all of its parts."""
    gguf_head: OwnHead | None = None
    """The own head of a .gguf file."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.config["vocab_size"])

    @property
    def max_positions(self) -> int | None:
        """Positions that the configuration names, rope scaling included; None where it names none."""
        positions = self.config.get("max_position_embeddings") or self.config.get("n_positions")
        return int(positions) if positions else None

    @property
    def heads(self) -> tuple[int, int]:
        """Numbers of attention heads and of key-value heads."""
        heads = int(self.config.get("num_attention_heads") or self.config.get("n_head") or 1)
        return heads, int(self.config.get("num_key_value_heads") or heads)

    @property
    def window(self) -> str | None:
        """Describes the layers that see only a window; None where all see everything."""
        types = self.config.get("layer_types")
        if types is not None:
            sliding = sum(kind == "sliding_attention" for kind in types)
            return None if sliding == 0 else f"{sliding} of {len(types)} layers"
        size = self.config.get("sliding_window")
        used = self.config.get("use_sliding_window", True)
        return f"every layer sees {size} tokens" if size and used else None

    @property
    def mixes_attention(self) -> bool:
        """Whether some layers slide and others do not: more than one group of KV caches."""
        types = self.config.get("layer_types")
        if types is not None:
            return len(set(types)) > 1 or "hybrid" in types
        if self.recurrent:
            # States and keys; a model of states alone has no attention heads.
            return "num_attention_heads" in self.config
        return self.config.get("model_type") in ("gemma2", "gemma3_text", "gemma3")

    @property
    def m_rope(self) -> bool:
        """Whether positions have several parts, as in vision models."""
        rope = self.config.get("rope_scaling") or self.config.get("rope_parameters") or {}
        # One setting for all layers, or one for each kind of layer.
        return any("mrope_section" in part for part in (rope, *rope.values()) if isinstance(part, dict))

    @property
    def recurrent(self) -> bool:
        """Whether layers keep a state that can't be cut back."""
        types = self.config.get("layer_types") or self.config.get("layers_block_type")
        if types is not None:
            return any(kind in _STATES for kind in types)
        return any(name in self.config for name in _STATE_SETTINGS)

    @property
    def pickled(self) -> list[str]:
        """Weight files that are pickles, where there are no safetensors."""
        if self.from_hub or self.is_gguf or checkpoint_files.weight_files(self.directory):
            return []
        return checkpoint_files.pickles(self.directory)

    @property
    def has_weights(self) -> bool:
        """Whether there are safetensors or a .gguf file; taken for granted on the hub, and for an adapter's base."""
        return (
            self.from_hub
            or self.is_gguf
            or self.adapter is not None
            or bool(checkpoint_files.weight_files(self.directory))
        )

    def damage(self, role: str) -> str | None:
        """Why the weights can't be read, by their headers and sizes; None where nothing is wrong, or they aren't here.

        Args:
            role: Flag that names the model, for messages.
        """
        base = None if self.adapter is None else Path(self.adapter.base)
        if self.from_hub or self.is_gguf or (base is not None and not base.is_dir()):
            return None
        directory = base or self.directory
        try:
            if checkpoint_files.weight_files(directory):
                checkpoint_files.check_weights(directory, self.name, role)
            stored_tensors(directory, role)
        except ModelError as error:
            return str(error)
        return None

    @property
    def draft_kind(self) -> str | None:
        """Kind of a head for another model, such as eagle3; None for a model."""
        if self.is_gguf:
            return "eagle3" if self.config.get("model_type") == "eagle3" else None
        return draft_kind(self.whole_config.get("architectures"), self.whole_config.get("model_type"))

    def own_head(self, role: str) -> OwnHead:
        """The layers by which the model drafts for itself.

        Args:
            role: Flag that names the model, for messages.

        Raises:
            ModelError: A header of its weights can't be read.
        """
        if self.gguf_head is not None:
            return self.gguf_head
        # An adapter's own directory holds no weights of the model.
        base = None if self.adapter is None else Path(self.adapter.base)
        if base is not None and not base.is_dir():
            return OwnHead(head_files.claim(self.whole_config), None)
        return head_files.find(base or self.directory, self.whole_config, role)


def read(name: str, role: str, base: str | None = None) -> ModelFiles:
    """Reads configuration and tokenizer; for an adapter those of the merged model.

    Args:
        name: Hub id, directory or .gguf file.
        role: `target` or `draft`, for messages.
        base: Base of an adapter, as the user named it.

    Raises:
        ModelError: There is no configuration, or it is none of a language model, or an adapter can't be merged.
    """
    path = Path(name)
    if path.is_file():
        return _read_gguf(path, name, role)
    if not path.is_dir():
        checkpoint_files.check_hub_id(name, role)
    try:
        directory = path if path.is_dir() else _cached(name)
    except Exception as error:
        raise ModelError(f"can't load --{role} {name}: {checkpoint_files.why_no_files(name, error)}") from error
    adapter = None
    if adapters.is_adapter(directory):
        files = directory if path.is_dir() else adapters.from_hub(name)
        adapter = adapters.read(files, name, role, base)
        directory = adapter.joined
    elif base is not None:
        raise ModelError(f"--target-base {base} has no effect: --target {name} is no adapter; leave it away")
    checkpoint_files.check_directory(directory, name, role)
    whole = head_files.read_config(directory)
    # A head in the form of vLLM's speculators keeps its sizes one level down.
    config = whole.get("text_config") or whole.get("transformer_layer_config") or whole
    if not isinstance(config, dict) or not isinstance(config.get("vocab_size"), int):
        raise ModelError(f"--{role} {name}: its config.json names no vocab_size; is it a language model?")
    try:
        tokenizer, problem = _token_table(directory), ""
    except Exception as error:
        tokenizer, problem = None, first_line(error)
    return ModelFiles(
        name, directory, config, tokenizer, problem, not path.is_dir(), adapter=adapter, whole_config=whole
    )


def _read_gguf(path: Path, name: str, role: str) -> ModelFiles:
    if path.suffix != ".gguf":
        raise ModelError(f"--{role} {name} is a file but no .gguf; name a checkpoint directory or a .gguf file")
    header = read_header(path, role)
    table = TokenTable(header.tokens, header.kind, header.special, header.flags)
    return ModelFiles(
        name, path.parent, header.config, table, is_gguf=True, whole_config=header.config, gguf_head=header.own_head
    )


def _cached(name: str) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.json", "tokenizer*", "vocab*", "merges*"]))


def _token_table(directory: Path) -> TokenTable:
    vocabularies = checkpoint_files.TOKENIZER_VOCABULARIES
    if not any((directory / name).is_file() for name in vocabularies):
        raise ModelError(f"no {', '.join(vocabularies)}")
    settings_file = directory / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text()) if settings_file.is_file() else {}
    if (directory / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        vocab = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab(with_added_tokens=True)
        kind = json.loads((directory / "tokenizer.json").read_text())["model"].get("type", "BPE")
    else:
        # Only transformers knows how to read the older files.
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        vocab, kind = tokenizer.get_vocab(), type(tokenizer).__name__
    return TokenTable(
        {number: token for token, number in vocab.items()},
        kind,
        {name: vocab.get(_text(settings.get(name))) for name in ("bos_token", "eos_token")},
        {name: settings[name] for name in ("add_bos_token", "add_eos_token") if isinstance(settings.get(name), bool)},
    )


def _text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")
