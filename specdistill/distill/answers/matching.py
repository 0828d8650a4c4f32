"""Stored answers find their prompts by content. An id may be a line number, which an inserted line changes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specdistill.data.answer_rows import AnswerRow
from specdistill.data.batch import Example
from specdistill.data.prompt_checks import dated
from specdistill.data.prompts import Prompt
from specdistill.data.target_context import TargetView
from specdistill.errors import DataError
from specdistill.files.same_file import is_same_file
from specdistill.settings.target_context import FLAGS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def to_example(row: AnswerRow) -> Example:
    """A row as an example, without its labels."""
    prompt, answer, provenance = tuple(row["prompt_ids"]), tuple(row["answer_ids"]), tuple(row["provenance"])
    return Example(row["prompt_id"], prompt, answer, provenance)


def prompts_of(
    rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt], encoded: Sequence[list[int]]
) -> list[str | None]:
    """Finds the prompt that each row answers: the one with the same token ids, whatever the row calls it.

    Where several prompts have the same ids, a row goes to the one of its own name, else to one without answers.

    Args:
        rows: With the columns prompt_id and prompt_ids.
        prompts, encoded: Those that may be answered.

    Returns:
        Id of the prompt for each row; None where it answers none of them.
    """
    names: dict[tuple[int, ...], list[str]] = {}
    for prompt, ids in zip(prompts, encoded, strict=True):
        names.setdefault(tuple(ids), []).append(prompt.id)
    contents = [tuple(row["prompt_ids"]) for row in rows]
    # Row ids by content, in the order of the rows.
    found: dict[tuple[int, ...], dict[str, str]] = {content: {} for content in contents if content in names}
    for row, content in zip(rows, contents, strict=True):
        if content in found:
            found[content].setdefault(row["prompt_id"], "")
    for content, own in found.items():
        candidates = names[content]
        free = [name for name in candidates if name not in own] or candidates
        strays = [name for name in own if name not in candidates]
        own.update({name: name for name in candidates if name in own})
        own.update({name: free[number % len(free)] for number, name in enumerate(strays)})
    return [
        found[content][row["prompt_id"]] if content in found else None
        for row, content in zip(rows, contents, strict=True)
    ]


def select_rows(
    rows: Sequence[AnswerRow],
    source: Path,
    prompts: Sequence[Prompt],
    encoded: Sequence[list[int]],
    vocab_size: int,
    copies: int | None = None,
    view: TargetView | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[tuple[int, Example]]:
    """Finds the rows that answer the given prompts.

    Args:
        rows: Stored answers.
        source: Where they are, for messages.
        prompts, encoded: Whose answers are wanted.
        vocab_size: Size of the target's vocabulary.
        copies: At most this many per prompt, the first ones; None takes all.
        view: The prompts as the target must have seen them; None asks for nothing more than the draft sees.
        tokenizer: The target's, to say why nothing was found.

    Returns:
        Number and example of each, in order; an example has the id of its prompt, not of the row. The same answer that
        a row holds twice, as two runs on one directory left it, counts once.

    Raises:
        DataError: No row answers any of them, one belongs to another tokenizer, or its target saw another prompt.
    """
    seen_ids = {} if view is None else view.ids
    selected, counts, seen = [], Counter(), set()
    for number, (row, name) in enumerate(zip(rows, prompts_of(rows, prompts, encoded), strict=True)):
        if name is None or (copies and (row.get("copy", 0) >= copies or counts[name] >= copies)):
            continue
        example = to_example({**row, "prompt_id": name})
        if max(example.answer_ids, default=0) >= vocab_size:
            raise DataError(f"{source}: an id outside the vocabulary; made with another tokenizer?")
        if tuple(row.get("target_prompt_ids") or ()) not in ((), seen_ids.get(name)):
            raise DataError(
                f"{source}: the answer to prompt {name!r} was made by a target that saw another prompt than now; its "
                f"field answer or what {FLAGS} adds has changed: make it again"
            )
        if "copy" in row:
            key = (row["prompt_id"], row["copy"], example)
            if key in seen:
                continue
            seen.add(key)
        counts[name] += 1
        selected.append((number, example))
    if not selected:
        cause = "" if tokenizer is None else dated(prompts, tokenizer)
        raise DataError(
            f"{source} answers none of the training prompts; pass the --prompts and the tokenizer it was made with"
            + (f". Or it was made on another day: {cause}" if cause else "")
        )
    return selected


def remarks(
    source: str,
    rows: Sequence[AnswerRow],
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    target: str,
    remedy: str = "",
) -> list[str]:
    """Says how many prompts have stored answers, and warns where the answers were made for something else.

    Args:
        source: The flag with the directory.
        rows: Everything that is stored there.
        examples: Those that were selected.
        prompts: The prompts of the run that may be trained on.
        target: Name of the target.
        remedy: How prompts without answers get some.
    """
    answered = {example.prompt_id for example in examples}
    lines = [f"{source}: {len(examples)} answers to {len(answered)} of {len(prompts)} training prompts"]
    if len(answered) < len(prompts):
        first = next(prompt.id for prompt in prompts if prompt.id not in answered)
        lines.append(
            f"warning: {source} has no answer to {len(prompts) - len(answered)} training prompts (the first is "
            f"{first!r}); they are not trained on{remedy}"
        )
    unanswered = {_text(prompt.messages) for prompt in prompts if prompt.id not in answered}
    retold = sum(_text(row.get("messages") or ()) in unanswered for row in rows)
    if retold:
        lines.append(
            f"warning: {source}: {retold} answers are to training prompts in another chat template or tokenizer, and "
            "are left out"
        )
    others = _others({row.get("model") or target for row in rows}, target)
    if others:
        lines.append(f"warning: {source} holds answers by {', '.join(others)}, not by --target {target}")
    return lines


def labels_by_another(labelled_by: str, target: str) -> list[str]:
    """Warns where soft labels are the distributions of another model than the target."""
    return [
        f"warning: --soft-labels holds the distributions of {name}, not of --target {target}"
        for name in _others({labelled_by}, target)
    ]


def _others(names: set[str], target: str) -> list[str]:
    return sorted(name for name in names - {target} if not is_same_file(name, target))


def fingerprint(prompts: Sequence[Prompt]) -> str:
    """Hash of prompts with their answers, in order; ids don't count."""
    content = [_content(prompt) for prompt in prompts]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _content(prompt: Prompt) -> list[Any]:
    """Everything of a prompt that training reads; plain prompts hash as they did before there were tools."""
    extra = [] if prompt.is_plain else [prompt.tools, dict(prompt.chat_template_kwargs), prompt.reply]
    return [prompt.messages, prompt.answer, *extra]


def _text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Chat turns as one string; a parquet file fills fields that a turn lacks with None."""
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    return json.dumps(turns, sort_keys=True, default=str)
