"""Errors that a caller can cause. Each message is one line: what was expected, what was given, and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

SHORTER_TEXTS = "lower --max-new-tokens or shorten the longest prompts"
"""Remedy where memory ended and no batch size is to be set."""
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


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


class OutOfMemoryError(SpecdistillError, MemoryError):
    """Memory ended; the message names the settings that need less."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ended, here or on an accelerator; torch has no class of its own for a CPU's."""
    named = isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    known = isinstance(error, RuntimeError | OSError) and any(text in str(error).lower() for text in _OUT_OF_MEMORY)
    return named or known


@contextlib.contextmanager
def out_of_memory_named(remedy: str) -> Iterator[None]:
    """Turns running out of memory into one line with the settings that need less.

    Args:
        remedy: What to change, as it follows "out of memory; ".

    Raises:
        OutOfMemoryError: Memory ended inside the block, and no inner block has named a remedy.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, SpecdistillError) or not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"out of memory; {remedy}") from error


def smaller_batch(batch_size: int) -> str:
    """Remedy of a command that writes answers: half of its `--batch-size`, or shorter texts where that is 1 already."""
    lower = f"lower --batch-size to {batch_size // 2}, or " if batch_size > 1 else ""
    return f"{lower}{SHORTER_TEXTS}"


def first_line(error: BaseException) -> str:
    """First line of an error's text, or the name of its class if it has no text."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
