"""Hides warnings of transformers and huggingface_hub where our own errors say more."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides transformers' warnings inside the block, where our own errors say more."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


@contextlib.contextmanager
def quiet_bars() -> Iterator[None]:
    """Hides progress bars that a package draws on stderr and has no switch for; errors are still raised."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Hides huggingface_hub's warnings inside the block: a line or two for each try to reach the hub."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
