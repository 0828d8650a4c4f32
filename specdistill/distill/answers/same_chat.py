"""Whether stored answers were made with a run's way of rendering prompts."""

from __future__ import annotations

from pathlib import Path

from specdistill.errors import DataError
from specdistill.files import run_settings
from specdistill.settings.chat import ChatSettings
from specdistill.settings.parts import pick

_INNER = ("rollouts", "target", "other")
"""Folders of answers inside the directory of the run that wrote them."""


def settings_home(directory: Path) -> Path:
    """The directory with the settings of the run that wrote some answers: they may lie in a folder of it."""
    if not run_settings.exists(directory) and directory.name in _INNER:
        return directory.absolute().parent
    return directory


def check_same_chat(flag: str, directory: Path, chat: ChatSettings) -> None:
    """Compares with the settings of the run that wrote the directory, which needs no model.

    Args:
        flag: Flag that names the directory, for the message.
        directory: Answers or labels.
        chat: How this run renders prompts.

    Raises:
        DataError: The directory's prompts were rendered otherwise.
    """
    settings = settings_home(directory)
    if not run_settings.exists(settings):
        return
    theirs: ChatSettings = pick(ChatSettings, run_settings.read(settings))
    if theirs != chat:
        raise DataError(
            f"{flag} {directory} was made with {_flags(theirs)}, but this run has {_flags(chat)}; its prompts would be "
            f"other text: set {_flags(theirs)}, or make the answers again"
        )


def _flags(chat: ChatSettings) -> str:
    if chat.raw_prompts:
        return "--raw-prompts"
    if chat.chat_template_kwargs:
        return f"--chat-template-kwargs '{chat.chat_template_kwargs}'"
    return "neither --chat-template-kwargs nor --raw-prompts"
