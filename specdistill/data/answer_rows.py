"""The columns of a directory of answers: `generate` writes them, `annotate` adds labels, training reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from specdistill.data.prompt import Prompt


class AnswerRow(TypedDict):
    """One answer in a parquet shard. Label columns are described in `specdistill.data.soft_labels`."""

    prompt_id: str
    """Id of the prompt within its set."""
    messages: NotRequired[list[dict[str, str]]]
    """Chat turns of the prompt as {role, content}, where role and text say everything about every prompt of the set."""
    asked: NotRequired[str]
    """JSON text with the prompt's messages, tools and chat_template_kwargs, in sets where some prompts have more."""
    answer: NotRequired[str]
    """Text of the answer, without special tokens."""
    category: NotRequired[str]
    """Category of the prompt."""
    copy: NotRequired[int]
    """Number of this answer among those to the same prompt, counted from 0. A missing column means 0."""
    prompt_ids: list[int]
    """Token ids of the prompt, in the target's chat template."""
    target_prompt_ids: NotRequired[list[int]]
    """Token ids of the prompt as the target saw it, where that was more than `prompt_ids`."""
    answer_ids: list[int]
    """Token ids of the answer, with its end-of-sequence token if it has one."""
    provenance: list[int]
    """`Provenance` of each answer token."""
    finish_reason: NotRequired[str | None]
    """`eos`, `stop` or `length`, if a model wrote the answer."""
    seed: NotRequired[int]
    """Random seed of the answer, if a model wrote it."""
    model: NotRequired[str]
    """Name of the model that wrote the answer."""


class Asked(TypedDict, total=False):
    """Columns that keep what was asked; a set has one of them in all its rows, so that its shards share a schema."""

    messages: list[dict[str, str]]
    asked: str


def asked_columns(prompts: Sequence[Prompt]) -> list[Asked]:
    """Columns of each prompt of a set."""
    if all(prompt.is_plain for prompt in prompts):
        return [{"messages": list(prompt.messages)} for prompt in prompts]
    return [
        {
            "asked": json.dumps(
                {
                    "messages": prompt.messages,
                    "tools": prompt.tools,
                    "chat_template_kwargs": dict(prompt.chat_template_kwargs),
                }
            )
        }
        for prompt in prompts
    ]


def asked_prompt(row: AnswerRow) -> Prompt | None:
    """The prompt that a row answers; None if the row does not keep it."""
    name, messages, text = row["prompt_id"], row.get("messages"), row.get("asked")
    if text is not None:
        asked = json.loads(text)
        return Prompt(
            name,
            tuple(asked["messages"]),
            tools=tuple(asked["tools"]),
            chat_template_kwargs=asked["chat_template_kwargs"],
        )
    return Prompt(name, tuple(messages)) if messages else None
