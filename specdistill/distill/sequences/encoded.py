"""The prompts of a run in the target's ids, made before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from specdistill.data.prompts import Prompt, check_lengths, encode_all
from specdistill.models.pair import FoundPair


@dataclass(frozen=True)
class EncodedPrompts:
    """Both sides of the prompts, in order."""

    training: list[list[int]]
    heldout: list[list[int]]

    @classmethod
    def of_sides(
        cls, training: Sequence[Prompt], heldout: Sequence[Prompt], found: FoundPair, max_new_tokens: int
    ) -> Self:
        """Encodes both sides with the target's tokenizer.

        Raises:
            DataError: The chat template refuses a prompt, or an answer of `max_new_tokens` has no room after it.
        """
        room, tokenizer = found.max_context - max_new_tokens, found.target.tokenizer
        return cls(encode_all(training, tokenizer, room), encode_all(heldout, tokenizer, room))

    def check_room(self, training: Sequence[Prompt], heldout: Sequence[Prompt], max_prompt_tokens: int) -> None:
        """Raises DataError where a server's context is shorter than the models' and has no room for a prompt."""
        check_lengths(training, self.training, max_prompt_tokens)
        check_lengths(heldout, self.heldout, max_prompt_tokens)
