"""The result of generation: tokens, who proposed them, and how long it took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from specdistill.data.batch import Example, Provenance
from specdistill.decoding.stopping import Stopping
from specdistill.errors import DataError
from specdistill.models import LanguageModel

OnTokens = Callable[[int, list[int]], None]
"""Called with the index of a prompt and the tokens that one round has just added to its answer."""


class Round(NamedTuple):
    """Counts of one verification, for one answer."""

    proposed: int
    """Draft tokens that verification could keep. Tokens after an accepted end of the answer are not counted."""
    accepted: int
    """Draft tokens that it kept."""
    emitted: int
    """Tokens added to the answer, with the target's correction or bonus token."""
    rejected: int | None = None
    """The draft token that the target's correction replaced; None where all that could be kept were kept."""


@dataclass
class Generation:
    """One prompt's answer."""

    token_ids: list[int] = field(default_factory=list)
    """Token ids of the answer, with its end-of-sequence token if it has one."""
    from_draft: list[bool] = field(default_factory=list)
    """Whether the draft proposed each token."""
    target_hidden: list[Tensor] = field(default_factory=list, repr=False)
    """Hidden states of the target that predict the tokens, [tokens, hidden] in pieces; empty unless asked for."""
    rounds: list[Round] = field(default_factory=list)
    """Verifications in order. The pass over the prompt, which gives the first token, is not one of them."""
    finish_reason: str | None = None
    """`eos`, `stop` (a stop string) or `length`; None during generation."""
    seconds: float = 0.0
    """Wall time of the call that generated the whole batch."""
    first_token_seconds: float = 0.0
    """Wall time from the start of that call to this answer's first token."""
    model_seconds: float = 0.0
    """Share of `seconds` inside the models' forward passes."""
    target_calls: int = 0
    """Forward passes of the target, with the one over the prompt."""

    def emit(self, token_ids: list[int], num_from_draft: int, stopping: Stopping) -> list[int]:
        """Appends tokens until the answer ends.

        Args:
            token_ids: New tokens.
            num_from_draft: How many of them, from the first on, the draft proposed.
            stopping: Decides where the answer ends.

        Returns:
            The tokens that were appended.
        """
        emitted = []
        for index, token in enumerate(token_ids):
            if self.finish_reason is not None:
                break
            self.token_ids.append(token)
            self.from_draft.append(index < num_from_draft)
            self.finish_reason = stopping.reason(self.token_ids)
            emitted.append(token)
        return emitted


def check_lengths(prompts: list[list[int]], max_new_tokens: int, *models: LanguageModel) -> None:
    """Refuses prompts that do not fit a model's context together with the new tokens.

    Raises:
        DataError: A prompt is empty or too long; it is named by its number, counted from 1.
    """
    for model in models:
        for number, prompt in enumerate(prompts, start=1):
            if not prompt:
                raise DataError(f"prompt {number} is empty after tokenisation; remove it")
            if len(prompt) + max_new_tokens > model.max_context:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the context "
                    f"of {model.max_context} of {model.name}; shorten it or lower --max-new-tokens"
                )


def unpad(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """Turns a padded batch into lists of token ids, whichever side the padding is on.

    Args:
        input_ids: int64 [batch, length].
        attention_mask: [batch, length]; 0 on padding.
    """
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]


def as_example(prompt_id: str, encoded: list[int], generation: Generation, writer: Provenance) -> Example:
    """Turns a generation into an example.

    Args:
        prompt_id: Id of the prompt.
        encoded: Token ids of the prompt.
        generation: The answer.
        writer: Who wrote every token of it.
    """
    ids = tuple(generation.token_ids)
    return Example(prompt_id, tuple(encoded), ids, (int(writer),) * len(ids))
