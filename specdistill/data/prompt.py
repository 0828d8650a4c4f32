"""One prompt: what is asked, with everything that its chat template may read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
"""One chat turn as its template reads it: role, content, and any other key (tool_calls, name, ...)."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: what a user asks, and for supervised methods the answer to learn."""

    id: str
    """Unique within its set. Errors name the prompt by it."""
    messages: tuple[Message, ...]
    """Chat turns up to the answer; a plain prompt is one user turn."""
    category: str = "all"
    """Group of prompts that the report shows separately."""
    answer: str | None = None
    """Text of the reference answer, for supervised methods and exact-match scoring."""
    tools: tuple[Message, ...] = ()
    """Tools that the template describes to the model, as JSON schemas."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of this prompt's chat template, such as enable_thinking."""
    raw: bool = False
    """Whether the text is taken as it is, without the chat template."""
    reply: Message | None = field(default=None, compare=False)
    """The assistant's turn that holds the answer, if it has more than text: tool calls, or its reasoning."""
    left_out: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    """Parts of the row that were not read, each with the part that was read in its place."""
    place: str = field(default="", compare=False, repr=False)
    """File and line that the prompt was read from, for messages."""
    fields: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """Names of the row's fields, for messages; empty where no row was read."""

    @property
    def where(self) -> str:
        """Names the prompt in an error: by its place if it has one, else by its id."""
        return self.place or f"prompt {self.id!r}"

    @property
    def is_empty(self) -> bool:
        """Whether there is a given answer that holds no text."""
        return self.answer is not None and not self.answer.strip() and self.reply is None

    @property
    def is_plain(self) -> bool:
        """Whether role and text of each turn say everything that was asked."""
        plain = all(turn.keys() == {"role", "content"} and isinstance(turn["content"], str) for turn in self.messages)
        return plain and not self.tools and not self.chat_template_kwargs


def lacking_answers(prompts: Sequence[Prompt]) -> str | None:
    """Says how many prompts lack their given answer, and which fields their rows have; None where none does.

    Args:
        prompts: All that need one.
    """
    bare = [prompt for prompt in prompts if prompt.answer is None]
    if not bare:
        return None
    fields = list(dict.fromkeys(name for prompt in bare for name in prompt.fields))
    there = f"; the fields there are {', '.join(fields)}" if fields else ""
    return f'{len(bare)} of {len(prompts)} prompts have no field "answer" (the first is {bare[0].where}{there})'
