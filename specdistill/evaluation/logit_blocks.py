"""Blocks of long answers, whose logits would not fit memory at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch

_LOGITS = 2**26
"""Logits that are held at once, of each model: 256 MiB."""


def logit_blocks(rows: torch.Tensor, vocab_size: int) -> Iterator[slice]:
    """Splits an answer's hidden states, so that the logits of a block fit memory however long the answer is.

    Args:
        rows: [answer, hidden].
        vocab_size: Logits per token.

    Yields:
        Slices of the answer; one for an answer of usual length.
    """
    size = max(64, _LOGITS // vocab_size)
    yield from (slice(start, start + size) for start in range(0, max(1, len(rows)), size))
