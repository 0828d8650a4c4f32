"""Prompts of one set, as a draft is asked them and as the target sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from specdistill.data.answer_rows import AnswerRow
from specdistill.data.prompts import Prompt, encode_all
from specdistill.data.target_context import TargetContext, TargetView
from specdistill.distill.answers.matching import prompts_of
from specdistill.errors import DataError
from specdistill.models import load
from specdistill.settings.target_context import FLAGS


class StoredPrompts(Protocol):
    """Stored answers that tell which prompts they are to."""

    def prompts(self) -> list[AnswerRow]:
        """Rows with the columns prompt_id and prompt_ids."""
        ...


SeenIds = dict[tuple[str, tuple[int, ...]], tuple[int, ...]]
"""(id, token ids) of a stored answer's prompt -> token ids as the target sees it."""


@dataclass(frozen=True)
class Asked:
    """Encoded prompts."""

    prompts: Sequence[Prompt]
    encoded: Sequence[list[int]]
    """Ids as a draft sees them."""
    context: TargetContext
    view: TargetView

    @property
    def seen(self) -> list[list[int]]:
        """Ids of each prompt as the target sees it."""
        return [self.view.ids_of(prompt.id, ids) for prompt, ids in zip(self.prompts, self.encoded, strict=True)]

    def seen_in(self, parts: StoredPrompts, source: str) -> SeenIds:
        """Finds the prompt of each stored answer as the target sees it; empty where it sees no more than the draft.

        Args:
            parts: The answers.
            source: The flag with the directory, for messages.

        Raises:
            DataError: A row answers none of the prompts.
        """
        seen: SeenIds = {}
        if not self.view.ids:
            return seen
        rows = parts.prompts()
        for row, name in zip(rows, prompts_of(rows, self.prompts, self.encoded), strict=True):
            if name is None:
                raise DataError(
                    f"{source}: the answer to {row['prompt_id']!r} is to none of --prompts; name the prompts that were "
                    f"answered there, so that {FLAGS} can add to them"
                )
            seen[row["prompt_id"], tuple(row["prompt_ids"])] = self.view.ids[name]
        return seen


def ask(prompts: Sequence[Prompt], context: TargetContext, target: load.ModelSource, room: int) -> Asked:
    """Encodes prompts in both ways.

    Args:
        prompts: The prompts.
        context: What only the target sees.
        target: Its tokenizer reads both.
        room: Tokens that a prompt may have.

    Raises:
        DataError: A prompt is too long or can't be encoded.
    """
    encoded = encode_all(prompts, target.tokenizer, room, target.vocab_size)
    return Asked(prompts, encoded, context, context.view(prompts, encoded, target.tokenizer, room, target.vocab_size))
