"""The errors a caller can cause. Each says what was expected, what came, and the remedy, in one line."""

from __future__ import annotations


class SpecdistillError(Exception):
    """Base of every error that this package raises on purpose; the command line prints it and exits 2."""


class ConfigError(SpecdistillError, ValueError):
    """A setting is outside its range, or two settings contradict each other."""


class DataError(SpecdistillError, ValueError):
    """Prompts or sequences are missing, malformed or too long."""


class ModelError(SpecdistillError, ValueError):
    """A model can't be found, loaded, or is of an architecture that is not supported."""


class IncompatibleModelsError(SpecdistillError, ValueError):
    """Target and draft don't share one vocabulary."""


class OutputError(SpecdistillError, OSError):
    """A result can't be written, or writing it would overwrite an older one."""


class ServerError(SpecdistillError, OSError):
    """A model's server is gone, refuses, or answers what it should not."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """Of the HTTP answer, where it was a refusal."""


class ServerAwayError(ServerError):
    """A server is down, overloaded or broke off an answer: asking again may help."""
