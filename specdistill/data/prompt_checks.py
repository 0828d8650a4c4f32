"""Checks of encoded prompts for what is legal and seldom meant; each is one line of warning."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from specdistill.data.prompts import Prompt
from specdistill.data.templates import with_objects

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "specdistill-probe"


class PromptReader(Protocol):
    """The facts about a model that decide how it reads prompts; a `LanguageModel` has them."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Every id that ends an answer."""
        ...


def warn_about_prompts(
    prompts: Sequence[Prompt], encoded: Sequence[list[int]], target: PromptReader, say: Callable[[str], None]
) -> None:
    """Says what of rows and template arguments is not read, and which prompts are templated already, end in a stop
    token, or change from day to day.

    Args:
        prompts, encoded: The prompts and their ids.
        target: The model that reads them.
        say: Where a warning goes, one line each.
    """
    tokenizer = target.tokenizer
    for warning in (
        *_left_out(prompts),
        _unread_arguments(prompts, tokenizer),
        _templated_twice(prompts, tokenizer),
        _ended(prompts, encoded, tokenizer, target.eos_token_ids),
        dated(prompts, tokenizer),
    ):
        if warning:
            say(f"warning: {warning}")


def template_variables(template: str) -> set[str] | None:
    """Names that a chat template reads from outside; None where it can't be parsed."""
    import jinja2
    from jinja2 import meta

    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    # A tag of transformers, which marks the assistant's tokens.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    try:
        return meta.find_undeclared_variables(environment.parse(plain))
    except jinja2.TemplateError:
        return None


def dated(prompts: Sequence[Prompt], tokenizer) -> str:
    """Says which prompt holds the day's date by its chat template, and what fixes it; empty where none does."""
    templates = tokenizer.chat_template or ""
    sources = list(templates.values()) if isinstance(templates, dict) else [templates]
    if not any("strftime_now" in source for source in sources):
        return ""
    found = next((prompt for prompt in prompts if not prompt.raw and _differs_by_day(prompt, tokenizer)), None)
    if found is None:
        return ""
    if any("date_string" in (template_variables(source) or ()) for source in sources):
        remedy = 'set it in every command: --chat-template-kwargs \'{"date_string": "26 Jul 2024"}\''
    else:
        remedy = "write a fixed date into the template, in the tokenizer's files"
    return (
        f"the chat template writes today's date into prompt {found.id!r}, so answers stored today belong to no prompt "
        f"of tomorrow; {remedy}"
    )


def _differs_by_day(prompt: Prompt, tokenizer) -> bool:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    tools = list(prompt.tools) or None
    # apply_chat_template hands no function over.
    template = _compile_jinja_template(tokenizer.get_chat_template(tools=tools))
    known = {**tokenizer.special_tokens_map, **prompt.chat_template_kwargs, "add_generation_prompt": True}
    turns = [
        {name: value for name, value in turn.items() if value is not None} for turn in with_objects(prompt.messages)
    ]
    try:
        one, other = (
            template.render(messages=turns, tools=tools, **{**known, "strftime_now": day.strftime})
            for day in (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2032, 11, 10, 9, 8, 7))
        )
    except Exception:
        # As in `_markers`.
        return False
    return one != other


def _left_out(prompts: Sequence[Prompt]) -> list[str]:
    pairs = dict.fromkeys(pair for prompt in prompts for pair in prompt.left_out)
    return [
        f"{_which([prompt.id for prompt in prompts if pair in prompt.left_out])} has {pair[0]} and {pair[1]} too: "
        f"{pair[1]} is what counts, {pair[0]} is left out; remove the one that you don't mean"
        for pair in pairs
    ]


def _unread_arguments(prompts: Sequence[Prompt], tokenizer) -> str:
    named = sorted({name for prompt in prompts for name in prompt.chat_template_kwargs})
    if not named:
        return ""
    if not tokenizer.chat_template:
        return f"the tokenizer has no chat template, so chat_template_kwargs ({', '.join(named)}) change nothing"
    templates = tokenizer.chat_template
    read: set[str] = set()
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        variables = template_variables(template)
        if variables is None:
            return ""
        read |= variables
    unread = [name for name in named if name not in read]
    if not unread:
        return ""
    return (
        f"the chat template never reads {', '.join(unread)} of chat_template_kwargs, so it changes nothing; it reads "
        f"{', '.join(sorted(read))}"
    )


def _templated_twice(prompts: Sequence[Prompt], tokenizer) -> str:
    templated = [prompt for prompt in prompts if not prompt.raw] if tokenizer.chat_template else []
    for marker in _markers(templated[0], tokenizer) if templated else []:
        found = [
            prompt.id
            for prompt in templated
            if any(_text(turn).lstrip().startswith(marker) for turn in prompt.messages)
        ]
        if found:
            return (
                f"{_which(found)} begins with {marker!r}, a marker of the chat template, so it is templated twice; set "
                "--raw-prompts to take such texts as they are"
            )
    return ""


def _markers(prompt: Prompt, tokenizer) -> list[str]:
    """Strings by which a rendered prompt is known: special tokens before a turn's text, and the first word."""
    try:
        turn = {"role": "user", "content": _PROBE}
        rendered = str(tokenizer.apply_chat_template([turn], tokenize=False, **prompt.chat_template_kwargs))
    except Exception:
        # Templates may refuse any turn; encoding the prompts has already said so where it matters.
        return []
    head = rendered.partition(_PROBE)[0].strip()
    added = [token for token in tokenizer.get_added_vocab() if token in head]
    word = head.split(maxsplit=1)[0] if head else ""
    # Without a bracket it may be any word of a sentence.
    return sorted(
        {*added, *([word] if re.search(r"[<\[|{#]", word) else [])}, key=lambda marker: (-len(marker), marker)
    )


def _ended(prompts: Sequence[Prompt], encoded: Sequence[list[int]], tokenizer, stop_ids: Collection[int]) -> str:
    found = [(prompt.id, ids[-1]) for prompt, ids in zip(prompts, encoded, strict=True) if ids and ids[-1] in stop_ids]
    if not found:
        return ""
    stop, ids = found[0][1], [name for name, _ in found]
    return (
        f"{_which(ids)} ends in the stop token {tokenizer.convert_ids_to_tokens(stop)!r} (id {stop}), after which a "
        "model has nothing to say; where the tokenizer adds it, set add_eos_token to false in its tokenizer_config.json"
    )


def _which(ids: Sequence[str]) -> str:
    more = "" if len(ids) == 1 else f" (and {len(ids) - 1} more)"
    return f"prompt {ids[0]!r}{more}"


def _text(turn: dict[str, str]) -> str:
    content = turn.get("content")
    return content if isinstance(content, str) else ""
