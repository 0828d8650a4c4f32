"""The bytes that a tokenizer's tokens stand for, however it spells them, so that two tokenizers can be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from specdistill.errors import ModelError

_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF = {character: value for value, character in bytes_to_unicode().items()}


@dataclass(frozen=True)
class Spelling:
    """Every token of a tokenizer with the bytes that it stands for."""

    texts: dict[int, bytes]
    """Bytes of every token that is written in text."""
    spare_bytes: dict[int, bytes]
    """Byte tokens (<0x41>) that are never written, since another token has the same bytes."""
    special: dict[int, str]
    """Names of the control tokens, which have no text."""
    splitter: Tokenizer
    """The tokenizer without what it puts before a text, so that it splits the middle of one."""

    def ids(self) -> dict[bytes, int]:
        """Bytes -> the lowest id that stands for them."""
        found: dict[bytes, int] = {}
        for token_id in sorted(self.texts):
            found.setdefault(self.texts[token_id], token_id)
        return found

    def named_ids(self) -> dict[bytes, int]:
        """The same, with control tokens by their names."""
        return {name.encode(): number for number, name in self.special.items()} | self.ids()

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of the tokens into which each text is split, without control tokens."""
        encodings = self.splitter.encode_batch(list(texts), add_special_tokens=False)
        return [[token_id for token_id in encoding.ids if token_id in self.texts] for encoding in encodings]


def spell(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> Spelling:
    """Says what each token stands for.

    Byte-level tokenizers (GPT-2, Llama 3, Qwen) write every byte as a character of its own. SentencePiece ones
    (Llama 2, Gemma) write a space as ▁ and a byte without a token as <0x0A>. Others write the text itself.

    Args:
        tokenizer: Any tokenizer of the tokenizers library.
        rows: Rows of the model's embedding; tokens beyond have none and are left out.
        where: The model as messages name it, such as `--donor NAME`.

    Raises:
        ModelError: The tokenizer has no tokenizer.json and can't be converted to one.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            f"{where} has a tokenizer written in Python, whose tokens can't be compared: save it with a tokenizer.json"
        )
    fast = cast(PreTrainedTokenizerFast, tokenizer)
    settings = json.loads(fast.backend_tokenizer.to_str())
    added = fast.added_tokens_decoder
    special = {number: str(token) for number, token in added.items() if token.special}
    special |= dict(zip(fast.all_special_ids, fast.all_special_tokens, strict=True))
    byte_level = _has(settings["decoder"], "ByteLevel") or _has(settings["pre_tokenizer"], "ByteLevel")
    marks_spaces = _marks_spaces(settings)
    texts: dict[int, bytes] = {}
    byte_tokens: dict[int, bytes] = {}
    for token, number in fast.get_vocab().items():
        if number >= rows or number in special:
            continue
        byte = None if byte_level or number in added else _BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            byte_tokens[number] = bytes.fromhex(byte[1])
        elif byte_level:
            # Added tokens are looked for in the text itself.
            texts[number] = token.encode() if number in added else _byte_level(token)
        else:
            texts[number] = (token.replace(_SPACE, " ") if marks_spaces else token).encode()
    written = set(texts.values())
    texts |= {number: byte for number, byte in byte_tokens.items() if byte not in written}
    spare = {number: byte for number, byte in byte_tokens.items() if byte in written}
    return Spelling(
        texts, spare, {number: name for number, name in special.items() if number < rows}, _splitter(settings)
    )


def _byte_level(token: str) -> bytes:
    if all(character in _BYTE_OF for character in token):
        return bytes(_BYTE_OF[character] for character in token)
    return token.encode()


def _steps(step: Any) -> list[dict[str, Any]]:
    """A part of a tokenizer.json as a flat list of its steps."""
    if step is None:
        return []
    inner = [*step.get("decoders", []), *step.get("pretokenizers", []), *step.get("normalizers", [])]
    return [step, *(each for part in inner for each in _steps(part))]


def _has(part: Any, kind: str) -> bool:
    return any(step["type"] == kind for step in _steps(part))


def _marks_spaces(settings: dict[str, Any]) -> bool:
    steps = _steps(settings["decoder"])
    replaces = any(step["type"] == "Replace" and step["pattern"].get("String") == _SPACE for step in steps)
    return replaces or _has(settings["decoder"], "Metaspace") or _has(settings["pre_tokenizer"], "Metaspace")


def _splitter(settings: dict[str, Any]) -> Tokenizer:
    """A copy of the tokenizer that puts no space before a text."""
    settings = json.loads(json.dumps(settings | {"truncation": None, "padding": None}))
    for step in [*_steps(settings["normalizer"]), *_steps(settings["pre_tokenizer"])]:
        if step["type"] == "Prepend":
            step["prepend"] = ""
        if step["type"] == "Metaspace":
            step["prepend_scheme"] = "never"
        if step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
    return Tokenizer.from_str(json.dumps(settings))
