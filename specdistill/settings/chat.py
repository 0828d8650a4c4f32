"""How prompts become text: arguments of the chat template, or no template at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from specdistill.errors import ConfigError

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
TemplateArguments = Mapping[str, Json]
"""Argument of a chat template -> its value."""

OURS = (
    *("conversation", "messages", "tools", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs", "self", "conversations"),
)
"""Arguments that transformers would not hand to the template, or that specdistill sets itself."""


@dataclass(frozen=True, kw_only=True)
class ChatSettings:
    """How prompts are rendered; the same in every command of a project."""

    chat_template_kwargs: str | None = None
    """Arguments of the chat template as a JSON object, such as '{"enable_thinking": false}'; a mapping in YAML. Set
    those that you serve with. A prompt's own field chat_template_kwargs wins."""
    raw_prompts: bool = False
    """Take each prompt's text as it is, without the chat template. For prompts that are templated already, such as
    those of /v1/completions."""

    def __post_init__(self) -> None:
        # Canonical text, so that equal arguments compare equal wherever they are stored.
        object.__setattr__(self, "chat_template_kwargs", canonical(self.chat_template_kwargs))
        if self.raw_prompts and self.chat_template_kwargs:
            raise ConfigError("--raw-prompts uses no chat template; leave --chat-template-kwargs away")

    @property
    def template_arguments(self) -> TemplateArguments:
        """The arguments by name; empty without any."""
        return json.loads(self.chat_template_kwargs) if self.chat_template_kwargs else {}


def canonical(given: str | TemplateArguments | None) -> str | None:
    """Arguments as JSON text with sorted keys; None without any.

    Raises:
        ConfigError: They are no JSON object, or one has a name that is not the template's.
    """
    arguments = {} if given is None else given
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"--chat-template-kwargs is not valid JSON ({error}); write it as '{{\"enable_thinking\": false}}'"
            ) from error
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"--chat-template-kwargs must be a JSON object, got {arguments!r}")
    check_names(arguments, "--chat-template-kwargs")
    try:
        # Half a surrogate pair can be written in JSON, and is no character.
        json.dumps(arguments, ensure_ascii=False).encode()
        return json.dumps(arguments, sort_keys=True, allow_nan=False) if arguments else None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"--chat-template-kwargs holds a value that JSON does not have: {error}") from error


def check_names(arguments: TemplateArguments, place: str) -> None:
    """Raises ConfigError for a name that is specdistill's own; `place` begins the message."""
    for name in arguments:
        if name in OURS:
            raise ConfigError(f"{place}: {name!r} is set by specdistill and is no argument of a template; remove it")
