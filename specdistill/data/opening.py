"""The text before a user's words, which a target continues with words of its own (Magpie, Xu et al. 2024).

The chat template is rendered with a word that stands for the user's; what lies before it is the opening, and what
follows it ends the user's turn. A model without chat template continues its BOS token.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from specdistill.data.prompt import Prompt
from specdistill.data.templates import render
from specdistill.errors import ConfigError, ModelError
from specdistill.settings.chat import ChatSettings

_PROBE = "specdistill-probe"
_PLACE = "--prompts self:N"


@dataclass(frozen=True)
class Opening:
    """The text that a target continues, and where its continuation ends."""

    text: str
    """Text up to the user's words; empty where BOS alone is continued."""
    ids: tuple[int, ...]
    """Its token ids."""
    end: str
    """First thing that the template puts behind the user's words; empty where only a stop id ends them."""
    raw: bool
    """Whether raw text is continued, which has no end and is cut."""


def find_opening(tokenizer, chat: ChatSettings, system: str | None, bos_token_id: int | None) -> Opening:
    """Finds what a model continues when it is to write a user's words.

    Args:
        tokenizer: The target's tokenizer.
        chat: How prompts are rendered.
        system: System prompt before the user's words, or None.
        bos_token_id: BOS of the model; None if it has none.

    Raises:
        ConfigError: A system prompt is given where no chat template is used.
        DataError: The template refuses the turns, such as a system prompt.
        ModelError: There is nothing to continue, or the template repeats or drops a user's words.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template or chat.raw_prompts:
        if system is not None:
            reason = "--raw-prompts uses none" if chat.raw_prompts else f"the tokenizer of {name} has none"
            raise ConfigError(f"--self-system needs a chat template, and {reason}; leave it away")
        why = "--raw-prompts is set" if chat.raw_prompts else f"{name} has no chat template"
        return Opening("", (_start(bos_token_id, why),), "", raw=True)
    turns = [{"role": "user", "content": _PROBE}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    prompt = Prompt("self", tuple(turns), chat_template_kwargs=chat.template_arguments, place=_PLACE)
    rendered = render(prompt, prompt.messages, tokenizer)
    if rendered.count(_PROBE) != 1:
        raise ModelError(
            f"{_PLACE}: the chat template of {name} writes a user's words {rendered.count(_PROBE)} times in place of "
            "once, so there is no place where they begin; name a file of prompts"
        )
    before, _, behind = rendered.partition(_PROBE)
    # Tokenizers join a space to the word behind it, which the target writes.
    text = before.rstrip(" ")
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else ()
    return Opening(
        text,
        ids or (_start(bos_token_id, f"the chat template of {name} writes nothing before a user's words"),),
        _end(behind, [token for token in tokenizer.get_added_vocab() if token.strip()]),
        raw=False,
    )


def _start(bos_token_id: int | None, why: str) -> int:
    if bos_token_id is None:
        raise ModelError(f"{_PLACE}: {why}, and there is no BOS token to continue; name a file of prompts")
    return bos_token_id


def _end(behind: str, tokens: list[str]) -> str:
    """First token of the template behind the user's words, else the first line up to such a token."""
    behind = behind.lstrip()
    leading = [token for token in tokens if behind.startswith(token)]
    if leading:
        return max(leading, key=len)
    line = behind.partition("\n")[0]
    found = re.search("|".join(map(re.escape, tokens)), line) if tokens else None
    return line[: found.start() if found else None].strip()
