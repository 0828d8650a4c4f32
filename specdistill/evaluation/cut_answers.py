"""Answers that --max-new-tokens cut: they are scored on what was written until then."""

from __future__ import annotations

from collections.abc import Collection, Sequence

MANY_CUT = 0.1
"""Share of cut answers from which on a score says more about the limit than about the model."""


def is_cut(token_ids: Sequence[int], max_new_tokens: int, stop_ids: Collection[int]) -> bool:
    """Whether an answer reached the limit without an end of its own.

    Args:
        token_ids: The answer, with the id that ends it if it has one.
        max_new_tokens: The limit.
        stop_ids: Ids that end an answer of its model.
    """
    return len(token_ids) >= max_new_tokens and token_ids[-1] not in stop_ids


def cut_line(whose: str, cut: int, answers: int, max_new_tokens: int) -> str:
    """Says how many answers were cut; a warning with the remedy where many were, and empty where none was.

    Args:
        whose: Who wrote them.
        cut: Cut answers.
        answers: All of them.
        max_new_tokens: The limit.
    """
    if not cut:
        return ""
    line = f"{cut} of {answers} answers of {whose} were cut at --max-new-tokens {max_new_tokens}"
    if cut < MANY_CUT * answers:
        return line
    return f"warning: {line} and scored without their end; raise it"
