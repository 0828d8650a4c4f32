"""The columns of a directory of answers: `generate` writes them, `annotate` adds labels, training reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NotRequired, TypedDict

from specdistill.data.prompts import Prompt


class TemplateColumn(TypedDict):
    """A column of answers to prompts with template arguments."""

    chat_template_kwargs: NotRequired[str]
    """Arguments of the chat template, as a JSON object; an empty one where the prompt has none."""


class AnswerRow(TemplateColumn):
    """One answer in a parquet shard. Label columns are described in `specdistill.data.soft_labels`."""

    prompt_id: str
    """Id of the prompt within its set."""
    messages: NotRequired[list[dict[str, str]]]
    """Chat turns of the prompt as {role, content}."""
    answer: NotRequired[str]
    """Text of the answer, without special tokens."""
    category: NotRequired[str]
    """Category of the prompt."""
    copy: NotRequired[int]
    """Number of this answer among those to the same prompt, counted from 0. A missing column means 0."""
    prompt_ids: list[int]
    """Token ids of the prompt, in the target's chat template."""
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


def template_columns(prompts: Sequence[Prompt]) -> list[TemplateColumn]:
    """The template arguments of each prompt as a column, in every row or, where no prompt has any, in none."""
    if not any(prompt.chat_template_kwargs for prompt in prompts):
        return [{} for _ in prompts]
    return [{"chat_template_kwargs": json.dumps(prompt.chat_template_kwargs, sort_keys=True)} for prompt in prompts]
