"""Hides remarks of other libraries that say nothing about the user's run. Imports none of them."""

from __future__ import annotations

import logging

_REMARKS = {
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}
"""Logger -> beginning of the remark that is hidden."""


def hide_remarks() -> None:
    """Hides bitsandbytes' remarks about kernels that are optional, and about casts; call it before its import."""
    for logger, beginning in _REMARKS.items():
        logging.getLogger(logger).addFilter(_Hide(beginning))


class _Hide(logging.Filter):
    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def __eq__(self, other: object) -> bool:
        # A logger adds no filter that it has already.
        return isinstance(other, _Hide) and other._beginning == self._beginning

    def __hash__(self) -> int:
        return hash(self._beginning)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        return not str(record.msg).startswith(self._beginning)
