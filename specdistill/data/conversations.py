"""Turns a row of any common chat format into a prompt and its answer.

Formats: `prompt` with `answer` or `completion`, as text or as turns (TRL); `messages` (OpenAI); `conversations`
(ShareGPT). A closing turn of the assistant is the answer, never part of the prompt.
"""

from __future__ import annotations

import json
from typing import Any

from specdistill.data.prompt import Message, Prompt
from specdistill.data.readers import Record, check_characters
from specdistill.errors import DataError
from specdistill.settings.chat import OURS

FIELDS = ("prompt", "messages", "conversations")
"""A row needs one of these."""
_ROLES = {
    **{"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"},
    **{role: role for role in ("user", "assistant", "system", "tool")},
}
"""Names of roles in any capitals -> the name that templates know; others stay as they are."""
_BEYOND_TEXT = {"tool_calls", "reasoning_content", "reasoning", "thinking"}
"""Keys of an answer next to its text; only the chat template says how they are written."""


def read_prompt(record: Record, place: str, number: int) -> Prompt:
    """Checks a row and makes it a prompt.

    Args:
        record: The row.
        place: File and line, for messages.
        number: Id of the prompt if the row has none.

    Raises:
        DataError: The row is malformed, or holds something that can't be used.
    """
    turns = [_checked(turn, place, position) for position, turn in enumerate(_turns(record, place), start=1)]
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise DataError(f'{place}: "answer" must be a string, got {type(answer).__name__}')
    reply, left_out = None, _unread_fields(record, turns)
    if turns[-1]["role"] == "assistant":
        closing = turns.pop()
        beyond = bool(_BEYOND_TEXT & closing.keys())
        reply = closing if beyond and not answer else None
        if answer and (beyond or answer != closing.get("content")):
            left_out.append((_name_of_closing(record), "the field answer"))
        # A field of its own says more exactly what the answer is, such as a number to compare with.
        answer = answer or closing.get("content") or ""
    if not turns:
        raise DataError(f"{place}: holds the assistant's turn alone; put the turn before it that it answers")
    identity, category = record.get("id"), record.get("category")
    return Prompt(
        id=str(number if identity is None else identity),
        messages=tuple(turns),
        category="all" if category is None else str(category),
        answer=answer,
        tools=_tools(record, place),
        chat_template_kwargs=_template_arguments(record, place),
        reply=reply,
        left_out=tuple(left_out),
        place=place,
        fields=tuple(record),
    )


def _turns(record: Record, place: str) -> list[Any]:
    """Finds the turns of a row in whatever form they are."""
    if record.get("messages") is not None:
        return _list(record, "messages", place)
    if record.get("conversations") is not None:
        turns = [_from_sharegpt(turn, place) for turn in _list(record, "conversations", place)]
        system = record.get("system")
        return [{"role": "system", "content": system}, *turns] if isinstance(system, str) and system else turns
    prompt, completion = record.get("prompt"), record.get("completion")
    if isinstance(prompt, str) and prompt.strip():
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise DataError(f'{place}: needs a non-empty "prompt" string or "messages" list (or "conversations")')
    if isinstance(completion, str):
        completion = [{"role": "assistant", "content": completion}]
    if completion is None:
        return prompt
    last = completion[-1] if isinstance(completion, list) and completion else None
    if not isinstance(last, dict) or last.get("role") != "assistant":
        raise DataError(f'{place}: "completion" must be a string, or turns that end with the assistant\'s')
    return [*prompt, *completion]


def _unread_fields(record: Record, turns: list[Message]) -> list[tuple[str, str]]:
    """Fields that `_turns` passed over for another, with it; a copy of a turn's text, as data sets have it, is none."""
    given = [name for name in ("messages", "conversations", "prompt", "completion") if record.get(name) is not None]
    if given[0] == "prompt":
        return []
    texts = ("", *(turn.get("content") for turn in turns))
    return [(f"the field {name}", f"the field {given[0]}") for name in given[1:] if record[name] not in texts]


def _name_of_closing(record: Record) -> str:
    alone = record.get("messages") is None and record.get("conversations") is None
    return "the field completion" if alone and record.get("completion") is not None else "the closing assistant turn"


def _list(record: Record, name: str, place: str) -> list[Any]:
    turns = _parsed(record[name], place)
    if not isinstance(turns, list) or not turns:
        raise DataError(f'{place}: "{name}" must be a list of {{"role", "content"}} objects')
    return turns


def _parsed(value: Any, place: str) -> Any:
    """Reads a list or object that a table keeps as JSON text; other text stays."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        return value
    check_characters(json.dumps(read, ensure_ascii=False), place)
    return read


def _from_sharegpt(turn: Any, place: str) -> Any:
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    role = _ROLES.get(str(turn["from"]).lower())
    if role is None:
        raise DataError(f"{place}: a turn is from {turn['from']!r}; known are {', '.join(_ROLES)}")
    others = {name: value for name, value in turn.items() if name not in ("from", "value")}
    return {"role": role, "content": turn.get("value"), **others}


def _checked(turn: Any, place: str, position: int) -> Message:
    """Refuses a turn that no chat template can use, saying why."""
    shape = f'{place}: "messages" must be a list of {{"role", "content"}} objects, but turn {position}'
    if not isinstance(turn, dict):
        raise DataError(f"{shape} is {type(turn).__name__}")
    if not isinstance(turn.get("role"), str):
        raise DataError(f"{shape} has no role")
    # APIs write null for what a turn does not have, where templates ask whether it is there.
    turn = {name: value for name, value in turn.items() if value is not None or name == "content"}
    turn["role"] = _ROLES.get(turn["role"].lower(), turn["role"])
    content = turn.get("content")
    if isinstance(content, list):
        return turn | {"content": _joined(content, f"{place}: turn {position}")}
    if content is None and not turn.get("tool_calls"):
        raise DataError(f"{shape} has no content")
    if content is not None and not isinstance(content, str):
        raise DataError(f"{place}: turn {position}: content must be a string, got {type(content).__name__}")
    return turn


def _joined(parts: list[Any], place: str) -> str:
    """Joins the parts of a content by line breaks, as vLLM does for templates that expect text."""
    texts: list[str] = []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"{place}: content is a list: images are not supported, only parts of type text ({kind})")
        texts.append(part["text"])
    return "\n".join(texts)


def _tools(record: Record, place: str) -> tuple[Message, ...]:
    tools = _parsed(record.get("tools"), place)
    if tools is None or tools in ("", "[]"):
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f'{place}: "tools" must be a list of JSON schemas, or that list as JSON text')
    return tuple(tools)


def _template_arguments(record: Record, place: str) -> dict[str, Any]:
    arguments = _parsed(record.get("chat_template_kwargs"), place)
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        example = '{"enable_thinking": false}'
        raise DataError(f'{place}: "chat_template_kwargs" must be an object, got {kind}; write it as {example}')
    for name in arguments:
        if name in OURS:
            raise DataError(f'{place}: "chat_template_kwargs" can\'t set {name}: {name!r} is set by specdistill itself')
    return arguments
