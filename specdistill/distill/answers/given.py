"""Answers that came with the prompts: ended as the target ends its own, cut at the limit, empty ones left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specdistill.data.batch import Example, Provenance
from specdistill.data.prompt import Prompt, lacking_answers
from specdistill.data.templates import answer_text
from specdistill.errors import DataError


@dataclass(frozen=True)
class AnswerCounts:
    """Answers that are not trained on as they were given."""

    cut: int = 0
    """Answers that were longer than the limit. Their end is not trained on."""
    empty: int = 0
    """Answers without any text, or without a token. They are left out."""

    def say(self, say: Callable[[str], None], answers: int, max_new_tokens: int) -> None:
        """Reports both in one line, where there are any.

        Args:
            say: Where the line goes.
            answers: Answers in all.
            max_new_tokens: The limit.
        """
        parts = []
        if self.cut:
            parts.append(f"{self.cut} are cut at {max_new_tokens} tokens (--max-new-tokens)")
        if self.empty:
            parts.append(f"{self.empty} are empty and left out")
        if parts:
            say(f"of {answers} answers {', '.join(parts)}")


def check_answers(prompts: Sequence[Prompt], method: str) -> None:
    """Needs no model, so that missing answers are found before one is loaded.

    Raises:
        DataError: A prompt has no answer, or all answers are empty.
    """
    if (lacking := lacking_answers(prompts)) is not None:
        remedy = "--method seqkd or distillspec let the target answer instead"
        raise DataError(f"{lacking}, which {method} needs ({remedy})")
    check_some_text(prompts)


def check_some_text(prompts: Sequence[Prompt]) -> None:
    """Refuses prompts whose given answers are all empty.

    Raises:
        DataError: Every one is.
    """
    if all(prompt.is_empty for prompt in prompts):
        raise DataError(
            f"all {len(prompts)} answers are empty (prompt {prompts[0].id!r} is the first); write text into the field "
            '"answer", or let the target answer (specdistill generate)'
        )


def given_answers(
    prompts: Sequence[Prompt], encoded: Sequence[list[int]], tokenizer, end: int, max_new_tokens: int
) -> tuple[list[Example], AnswerCounts]:
    """Reads the prompts' own answers.

    Args:
        prompts: Each with an answer.
        encoded: Their ids.
        tokenizer: The target's.
        end: Id after each answer; see `answer_end`.
        max_new_tokens: Most tokens of an answer, its end included.

    Returns:
        An example for each answer with text, in order, and how many were cut or left out.
    """
    examples, cut, empty = [], 0, 0
    for prompt, ids in zip(prompts, encoded, strict=True):
        assert prompt.answer is not None, "check_answers comes first"
        if prompt.is_empty:
            empty += 1
            continue
        whole = [*tokenizer(answer_text(prompt, tokenizer), add_special_tokens=False)["input_ids"], end]
        answer = whole[:max_new_tokens]
        cut += len(answer) < len(whole)
        examples.append(Example(prompt.id, tuple(ids), tuple(answer), (int(Provenance.GIVEN),) * len(answer)))
    return examples, AnswerCounts(cut, empty)


def without_empty(examples: Sequence[Example], say: Callable[[str], None]) -> tuple[list[Example], AnswerCounts]:
    """Leaves out answers that have no token, such as those that a server broke off at once.

    Args:
        examples: Finished answers.
        say: Where the number of those left out is reported.

    Returns:
        The others, in order, and the count.

    Raises:
        DataError: None is left.
    """
    kept = [example for example in examples if example.answer_ids]
    if not kept:
        raise DataError(f"none of the {len(examples)} answers holds a token; there is nothing to train on")
    counts = AnswerCounts(empty=len(examples) - len(kept))
    counts.say(say, len(examples), 0)
    return kept, counts
