"""Which tokens of an answer a model wrote while it was thinking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


class Tags(NamedTuple):
    """Texts that begin and end a model's thinking; special tokens in most tokenizers, plain text in some."""

    opening: str
    closing: str
    closes_alone: bool = True
    """Whether a closing tag without an opening one ends thinking. False where it ends other things too."""


TAGS = (
    Tags("<think>", "</think>"),  # Qwen3, DeepSeek-R1, GLM, SmolLM3, Olmo 3 and most others
    Tags("[THINK]", "[/THINK]"),  # Magistral
    Tags("<seed:think>", "</seed:think>"),  # Seed-OSS
    Tags("<mm:think>", "</mm:think>"),  # MiniMax
    Tags("◁think▷", "◁/think▷"),  # Kimi
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Tags("<|channel|>analysis<|message|>", "<|end|>", closes_alone=False),  # gpt-oss
)
"""Tags of known models."""
_LONGEST = max(len(tag) for tags in TAGS for tag in (tags.opening, tags.closing))


def thinking_tokens(
    prompt_ids: Sequence[int], answer_ids: Sequence[int], piece: Callable[[int], str]
) -> list[bool] | None:
    """Says for each token of an answer whether it was written while thinking; a closing tag was, an opening was not.

    A template that opens the thinking leaves the tag at the end of the prompt; tags elsewhere in the prompt are the
    user's text, or closed thoughts of earlier turns. An answer with a closing tag alone was thinking from its start.

    Args:
        prompt_ids: Token ids of the prompt.
        answer_ids: Token ids of the answer.
        piece: Text of one token, special ones included.

    Returns:
        One value per token; None for an answer without any tag.
    """
    end = "".join(map(piece, prompt_ids[-_LONGEST:])).rstrip()
    opened = next((tags for tags in TAGS if end.endswith(tags.opening)), None)
    known, states, text = opened, [], ""
    for token in answer_ids:
        states.append(opened is not None)
        text = (text + piece(token))[-4 * _LONGEST :]
        if opened is not None:
            if opened.closing in text:
                opened, text = None, text.rpartition(opened.closing)[2]
            continue
        opened = next((tags for tags in TAGS if tags.opening in text), None)
        if opened is not None:
            known, text = opened, text.rpartition(opened.opening)[2]
        elif known is None:
            known = next((tags for tags in TAGS if tags.closes_alone and tags.closing in text), None)
            if known is not None:
                states, text = [True] * len(states), ""
    return None if known is None else states
