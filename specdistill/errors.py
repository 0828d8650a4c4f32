"""Errors that a caller can cause. Each message is one line: what was expected, what was given, and the remedy."""

from __future__ import annotations


class SpecdistillError(Exception):
    """Base class of the errors that this package raises on purpose; the command line prints them and exits with 2."""


class ConfigError(SpecdistillError, ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class DataError(SpecdistillError, ValueError):
    """Prompts, answers or texts are missing, malformed or too long."""


class ModelError(SpecdistillError, ValueError):
    """A model can't be found or loaded, or its architecture is not supported."""


class IncompatibleModelsError(SpecdistillError, ValueError):
    """Target and draft don't have the same vocabulary."""


class OutputError(SpecdistillError, OSError):
    """A result can't be written, or would overwrite an older one."""


class ServerError(SpecdistillError, OSError):
    """A server does not respond, refuses a request, or sends an answer that makes no sense.

    Args:
        message: The whole error text.
        status: HTTP status of the answer, if the server refused.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class ServerAwayError(ServerError):
    """A server is down, overloaded or broke off an answer. A second try may succeed."""


def first_line(error: BaseException) -> str:
    """First line of an error's text, or the name of its class if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
