"""Token ids of prompts and answers in a model's chat template. Needs the tokenizer only, no weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from specdistill.data.prompt import Message, Prompt
from specdistill.data.readers import check_characters
from specdistill.errors import DataError, ModelError, first_line

_PROBE = "specdistill"


def encode(prompt: Prompt, tokenizer) -> list[int]:
    """Token ids of a prompt, in the target's chat template if its tokenizer has one and the prompt is not raw.

    Args:
        prompt: The prompt.
        tokenizer: The target's tokenizer.

    Raises:
        DataError: The template refuses the prompt, or there is none and the prompt needs one.
        ModelError: The template itself is broken.
    """
    if tokenizer.chat_template and not prompt.raw:
        # The template already contains the special tokens.
        text = render(prompt, prompt.messages, tokenizer)
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    if prompt.tools or any(turn.get("tool_calls") for turn in prompt.messages):
        raise DataError(
            f"{prompt.where}: has tools for a chat template, but the tokenizer of {tokenizer.name_or_path} has no "
            "chat template; remove them"
        )
    text = "\n\n".join(message["content"] for message in prompt.messages)
    check_characters(text, prompt.where)
    ids = tokenizer(text)["input_ids"]
    # A text that begins with BOS gets no second one.
    doubled = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
    return ids[1:] if doubled else ids


def answer_text(prompt: Prompt, tokenizer) -> str:
    """Text of a prompt's answer as the model would write it: tool calls and reasoning in the template's own form.

    Args:
        prompt: A prompt with an answer.
        tokenizer: The target's tokenizer.

    Raises:
        DataError: The template can't write the answer after the prompt.
    """
    if prompt.reply is None or prompt.raw or not tokenizer.chat_template:
        return prompt.answer or ""
    asked = render(prompt, prompt.messages, tokenizer)
    whole = render(prompt, [*prompt.messages, prompt.reply], tokenizer, ends=True)
    probe = render(prompt, [*prompt.messages, {"role": "assistant", "content": _PROBE}], tokenizer, ends=True)
    if not whole.startswith(asked):
        raise DataError(
            f"{prompt.where}: the chat template does not write the assistant's turn after the prompt; give its text in "
            'the field "answer"'
        )
    return whole[len(asked) :].removesuffix(probe.rpartition(_PROBE)[2])


def render(prompt: Prompt, messages: Sequence[Message], tokenizer, *, ends: bool = False) -> str:
    """Text of some turns in the chat template of a tokenizer that has one.

    Args:
        prompt: Its tools and template arguments are used, and its place in messages.
        messages: The turns.
        tokenizer: The target's tokenizer.
        ends: Whether the last turn is the assistant's, so that none is asked for.

    Raises:
        DataError: The template refuses the turns.
        ModelError: The template itself is broken.
    """
    try:
        text = tokenizer.apply_chat_template(
            with_objects(messages),
            tools=list(prompt.tools) or None,
            tokenize=False,
            add_generation_prompt=not ends,
            **prompt.chat_template_kwargs,
        )
    except Exception as error:
        fault = _fault_of_template(tokenizer)
        if fault is not None:
            raise ModelError(fault) from error
        raise DataError(
            f"{prompt.where}: the chat template of {tokenizer.name_or_path} refuses the prompt: {first_line(error)}"
        ) from error
    check_characters(text, prompt.where)
    return text


def with_objects(messages: Sequence[Message]) -> list[Message]:
    """Turns as servers hand them to a template: arguments of tool calls are objects, where OpenAI has JSON text."""
    return [
        turn | {"tool_calls": [_with_object(call) for call in calls]}
        if isinstance(calls := turn.get("tool_calls"), list)
        else turn
        for turn in messages
    ]


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return call | {"function": function | {"arguments": arguments}} if isinstance(arguments, dict) else call


def _fault_of_template(tokenizer) -> str | None:
    """Says what is wrong with a template that no prompt can use; None if it works for others."""
    templates, name = tokenizer.chat_template, tokenizer.name_or_path
    if isinstance(templates, dict) and "default" not in templates:
        return (
            f"{name} has the chat templates {', '.join(templates)} but no default; name one of them default in its "
            "tokenizer files"
        )
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    for template in templates.values() if isinstance(templates, dict) else [templates]:
        try:
            _compile_jinja_template(template)
        except TemplateSyntaxError as error:
            line = (template.split("\n")[error.lineno - 1 :] or [""])[0].strip()
            return f"{name}: its chat template is no valid Jinja, line {error.lineno}: {line[:80]!r}; repair it"
    return None
