"""Prompts as the target sees them, where it sees more than the draft: context distillation.

Sources: Askell et al. 2021 (arXiv 2112.00861), Snell et al. 2022 (arXiv 2209.15189).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from specdistill.data.batch import Example
from specdistill.data.prompt import Message, Prompt
from specdistill.data.prompts import check_ids, load_prompts
from specdistill.data.templates import encode
from specdistill.errors import DataError
from specdistill.settings.target_context import FLAGS, ContextSettings


@dataclass(frozen=True)
class TargetView:
    """Token ids of prompts as the target reads them, by the prompt's id; other prompts it reads as the draft does."""

    ids: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def ids_of(self, prompt_id: str, encoded: Sequence[int]) -> list[int]:
        """Ids of a prompt for the target; `encoded` are those for the draft."""
        return list(self.ids.get(prompt_id, encoded))

    def examples(self, examples: Sequence[Example]) -> list[Example]:
        """Examples that take the target's prompt along."""
        if not self.ids:
            return list(examples)
        return [dataclasses.replace(row, target_prompt_ids=self.ids.get(row.prompt_id)) for row in examples]

    def check_room(self, room: int) -> None:
        """Refuses prompts that leave no room for an answer.

        Args:
            room: Tokens that a prompt of the target may have.

        Raises:
            DataError: A prompt has more.
        """
        for name, ids in self.ids.items():
            if len(ids) > room:
                raise DataError(
                    f"prompt {name!r} has {len(ids)} tokens as the target sees it, but only {room} fit its context "
                    f"next to the new tokens; shorten what {FLAGS} adds, or lower --max-new-tokens"
                )


@dataclass(frozen=True)
class TargetContext:
    """Text that only the target sees."""

    system: str | None = None
    turns: tuple[Message, ...] = ()
    """Examples, as turns of user and assistant."""
    hint: str | None = None
    """Text behind the prompt, with {answer}."""

    @staticmethod
    def read(settings: ContextSettings) -> TargetContext:
        """Reads the files; needs no model.

        Raises:
            DataError: A file is missing or empty, or an example has no answer.
        """
        system = None if settings.target_system is None else _read_text(settings.target_system)
        turns: tuple[Message, ...] = ()
        if settings.target_examples is not None:
            turns = tuple(turn for prompt in _read_examples(settings.target_examples) for turn in _as_turns(prompt))
        return TargetContext(system, turns, settings.target_hint)

    @property
    def is_empty(self) -> bool:
        """Whether the target sees what the draft sees."""
        return self == TargetContext()

    def to_text(self) -> str:
        """The context as JSON text, which is kept beside answers and weights that were made with it."""
        content = {"system": self.system, "examples": list(self.turns), "hint": self.hint}
        return json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    def prompt(self, prompt: Prompt) -> Prompt:
        """A prompt as the target sees it.

        Raises:
            DataError: The hint needs an answer that the prompt does not have.
        """
        turns = list(prompt.messages)
        own = turns.pop(0)["content"] if turns[0]["role"] == "system" else None
        system = "\n\n".join(text for text in (self.system, own) if text)
        if self.hint is not None:
            turns = _with_hint(turns, self.hint.replace("{answer}", _answer(prompt)))
        first = [{"role": "system", "content": system}] if system else []
        return dataclasses.replace(prompt, messages=(*first, *self.turns, *turns))

    def view(
        self, prompts: Sequence[Prompt], encoded: Sequence[list[int]], tokenizer, room: int, vocab_size: int
    ) -> TargetView:
        """Encodes prompts as the target sees them.

        Args:
            prompts, encoded: The prompts, and their ids for the draft.
            tokenizer: The target's.
            room: Tokens that a prompt of the target may have.
            vocab_size: Ids that the target has weights for.

        Raises:
            DataError: A prompt is too long, holds a token without weights, or the chat template leaves out what was
                added.
        """
        if self.is_empty:
            return TargetView()
        ids: dict[str, tuple[int, ...]] = {}
        for prompt, plain in zip(prompts, encoded, strict=True):
            longer = encode(self.prompt(prompt), tokenizer)
            if longer == plain:
                raise DataError(
                    f"{prompt.where}: the target would see no more than the draft: the chat template of "
                    f"{tokenizer.name_or_path} leaves out what {FLAGS} adds; add it by another of these flags"
                )
            check_ids(longer, tokenizer, vocab_size, f"prompt {prompt.id!r}, as the target sees it,")
            ids[prompt.id] = tuple(longer)
        view = TargetView(ids)
        view.check_room(room)
        return view


def _read_text(name: str) -> str:
    try:
        text = Path(name).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--target-system {name} can't be read as text ({error}); name a UTF-8 text file") from error
    if not text:
        raise DataError(f"--target-system {name} is empty; write the system prompt into it")
    return text


def _read_examples(name: str) -> list[Prompt]:
    try:
        return load_prompts(name)
    except DataError as error:
        raise DataError(f"--target-examples: {error}") from error


def _as_turns(prompt: Prompt) -> list[Message]:
    if prompt.messages[0]["role"] == "system":
        raise DataError(f"{prompt.where}: --target-examples has a system turn; put its text into --target-system")
    if prompt.reply is None and not (prompt.answer or "").strip():
        raise DataError(f'{prompt.where}: an example of --target-examples needs the field "answer"')
    return [*prompt.messages, prompt.reply or {"role": "assistant", "content": prompt.answer}]


def _answer(prompt: Prompt) -> str:
    if not (prompt.answer or "").strip():
        raise DataError(f'{prompt.where}: has no field "answer", which --target-hint shows to the target')
    return str(prompt.answer).strip()


def _with_hint(turns: list[Message], hint: str) -> list[Message]:
    """Adds the hint to the last turn of the user, or in one of its own where none speaks."""
    for number in range(len(turns) - 1, -1, -1):
        if turns[number]["role"] == "user":
            turns[number] = turns[number] | {"content": f"{turns[number]['content']}\n\n{hint}"}
            return turns
    return [*turns, {"role": "user", "content": hint}]
