"""What generating an answer produced: tokens, who proposed them, and how long it took."""

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
"""Called with a prompt's index and the tokens just added to its answer: one accepted run at a time."""


class Round(NamedTuple):
    """One verification: a target call and what came of it."""

    proposed: int
    """Draft tokens that verification could still have kept (those after an end of sequence don't count)."""
    accepted: int
    """Draft tokens kept."""
    emitted: int
    """Tokens that reached the output, the correction or bonus token included."""


@dataclass
class Generation:
    """One prompt's answer."""

    token_ids: list[int] = field(default_factory=list)
    """The answer, its end-of-sequence token included where it has one."""
    from_draft: list[bool] = field(default_factory=list)
    """For each token, whether the draft proposed it and it was kept."""
    target_hidden: list[Tensor] = field(default_factory=list, repr=False)
    """Where they were asked for: the target's hidden states that predict each token, [tokens, hidden] in pieces."""
    rounds: list[Round] = field(default_factory=list)
    """Verifications in order; the prompt's own pass, which yields the first token, is not one."""
    finish_reason: str | None = None
    """`eos`, `stop` (a stop string) or `length`; None while it is being generated."""
    seconds: float = 0.0
    """Wall time of the call that produced it, shared by its whole batch."""
    first_token_seconds: float = 0.0
    """Wall time until the first token."""
    model_seconds: float = 0.0
    """Part of `seconds` inside the models' forward passes."""
    target_calls: int = 0
    """Forward passes of the target, the prompt's included."""

    def emit(self, token_ids: list[int], num_from_draft: int, stopping: Stopping) -> list[int]:
        """Appends tokens up to the end of the answer, and returns those that were taken."""
        taken = []
        for index, token in enumerate(token_ids):
            if self.finish_reason is not None:
                break
            self.token_ids.append(token)
            self.from_draft.append(index < num_from_draft)
            self.finish_reason = stopping.reason(self.token_ids)
            taken.append(token)
        return taken


def check_lengths(prompts: list[list[int]], max_new_tokens: int, *models: LanguageModel) -> None:
    """Refuses prompts that don't fit the context together with what is to be generated.

    Raises:
        DataError: Naming the prompt (counted from 1), its length and the limit.
    """
    for model in models:
        for number, prompt in enumerate(prompts, start=1):
            if not prompt:
                raise DataError(f"prompt {number} is empty after tokenisation")
            if len(prompt) + max_new_tokens > model.max_context:
                raise DataError(
                    f"prompt {number} has {len(prompt)} tokens; with {max_new_tokens} new ones it exceeds the context "
                    f"of {model.max_context} of {model.name}; shorten it or lower --max-new-tokens"
                )


def unpad(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    """Prompts as lists from a padded batch, whichever side the padding is on.

    Args:
        input_ids: int64 [batch, length].
        attention_mask: [batch, length], 0 on padding.
    """
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]


def as_example(prompt_id: str, encoded: list[int], generation: Generation, writer: Provenance) -> Example:
    """A generation as a training sequence, all of it written by one model."""
    ids = tuple(generation.token_ids)
    return Example(prompt_id, tuple(encoded), ids, (int(writer),) * len(ids))
