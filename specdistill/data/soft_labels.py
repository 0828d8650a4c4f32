"""Soft labels on disk: what a target said about each answer token, so that training needs the target no more.

A row of a rollouts shard gains the columns `label_ids` and `label_log_probs` (the ids that were kept of each token's
distribution, one token after the other), `label_counts` (how many ids each token has) and, where the ids were drawn
instead of being the likeliest, `label_draws` (how often each was drawn). `datasets` loads such shards as they are.

What the likeliest K leave out is one outcome of the loss, never spread over the K: dividing by their sum would teach
the draft a sharper target than there is. Drawn labels are unbiased: the mean of draws / N over all draws is the
distribution itself (Anshumann et al. 2025, arXiv 2503.16870).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specdistill.data.batch import Example, with_free_ids
from specdistill.errors import DataError
from specdistill_kernels import SoftLabels

COLUMNS = ("label_ids", "label_log_probs", "label_counts")
DRAWS_COLUMN = "label_draws"


class TokenLabels(NamedTuple):
    """Of one answer, all its tokens' ids under each other."""

    ids: Tensor
    """int64 [labels]."""
    log_probs: Tensor
    """float [labels]: logarithms of the target's probabilities at the temperature of the labels."""
    counts: Tensor
    """int64 [answer]: labels per token."""
    draws: Tensor | None = None
    """int64 [labels]: how often each id was drawn; None for the likeliest."""


def likeliest(log_probs: Tensor, k: int) -> TokenLabels:
    """The K likeliest ids of each row.

    Args:
        log_probs: [answer, vocab].
        k: At most the vocabulary.
    """
    values, ids = log_probs.topk(min(k, log_probs.shape[1]))
    return TokenLabels(ids.flatten(), values.flatten(), torch.full((len(ids),), ids.shape[1]))


def drawn(log_probs: Tensor, draws: int, seed: int) -> TokenLabels:
    """N ids of each row, drawn from its distribution with replacement; an id drawn twice is kept once with its count.

    Args:
        log_probs: [answer, vocab].
        draws: N.
        seed: Of this answer.
    """
    if not len(log_probs):
        return TokenLabels(*(torch.zeros(0, dtype=kind) for kind in (torch.int64, torch.float32, torch.int64)))
    # On the CPU, so that every device draws alike.
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(log_probs.exp().cpu(), draws, replacement=True, generator=generator)
    found = [row.unique(return_counts=True) for row in chosen]
    ids, times = (torch.cat(parts) for parts in zip(*found, strict=True))
    counts = torch.tensor([len(each) for each, _ in found])
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    return TokenLabels(ids, log_probs.cpu()[rows, ids], counts, times)


def to_columns(labels: TokenLabels, vocab_size: int, precision: str) -> dict[str, np.ndarray]:
    """One row's label columns, as small as the vocabulary allows.

    Args:
        labels: Of one answer.
        vocab_size: Up to 65536 ids take two bytes, above that four.
        precision: float16 (a probability is then off by at most 0.02 %) or float32.
    """
    ids = labels.ids.cpu().numpy().astype(np.uint16 if vocab_size <= 2**16 else np.uint32)
    columns = {
        "label_ids": ids,
        "label_log_probs": labels.log_probs.float().cpu().numpy().astype(precision),
        "label_counts": labels.counts.cpu().numpy().astype(np.uint16 if vocab_size <= 2**16 else np.uint32),
    }
    if labels.draws is not None:
        columns[DRAWS_COLUMN] = labels.draws.cpu().numpy().astype(np.uint16)
    return columns


def bytes_per_token(kept: float, vocab_size: int, precision: str, *, with_draws: bool) -> float:
    """Bytes of label columns per answer token, before compression.

    Args:
        kept: Ids per token.
        vocab_size, precision: As in `to_columns`.
        with_draws: Whether the ids were drawn.
    """
    id_bytes = 2 if vocab_size <= 2**16 else 4
    return kept * (id_bytes + (2 if precision == "float16" else 4) + (2 if with_draws else 0)) + id_bytes


def padded(labels: TokenLabels, weights: Tensor) -> SoftLabels:
    """As the loss takes them: [answer, K], the places that rows with fewer ids leave are empty.

    Args:
        labels: Of one answer.
        weights: [labels], logarithms of what each id weighs.
    """
    width = max(1, int(labels.counts.max())) if len(labels.counts) else 1
    filled = torch.arange(width)[None] < labels.counts[:, None]
    ids = torch.full(filled.shape, -1, dtype=torch.int64)
    log_probs = torch.full(filled.shape, -torch.inf)
    ids[filled], log_probs[filled] = labels.ids, weights.float()
    return SoftLabels(with_free_ids(ids), log_probs)


class LabelStore:
    """The labels of a directory of shards, read when they are asked for: memory does not grow with the set.

    Args:
        shards: Parquet files that `specdistill annotate` wrote.

    Raises:
        DataError: One can't be read or holds no labels.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        import datasets

        datasets.disable_progress_bars()
        try:
            self._rows = datasets.Dataset.from_parquet([str(path) for path in shards])
        except Exception as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise DataError(f"{shards[0].parent} can't be read ({reason}); annotate it anew") from error
        assert isinstance(self._rows, datasets.Dataset)
        missing = [name for name in COLUMNS if name not in self._rows.column_names]
        if missing:
            raise DataError(
                f"{shards[0].parent} holds no soft labels (no column {missing[0]}); 'specdistill annotate' writes them"
            )
        self.drawn = DRAWS_COLUMN in self._rows.column_names
        names = [*COLUMNS, *([DRAWS_COLUMN] if self.drawn else [])]
        self._labels = self._rows.select_columns(names).with_format("numpy")
        self._index: dict[tuple[str, tuple[int, ...]], int] = {}

    def rows(self) -> list[dict[str, Any]]:
        """All rows without their labels, in order."""
        names = ("prompt_id", "prompt_ids", "answer_ids", "provenance", "copy")
        return self._rows.select_columns([name for name in names if name in self._rows.column_names]).to_list()

    def place(self, sequence: Example, row: int) -> None:
        """Says in which row a sequence's labels lie."""
        self._index[sequence.prompt_id, sequence.answer_ids] = row

    def token_labels(self, sequence: Example) -> TokenLabels:
        """The labels of a sequence that was placed."""
        row: dict[str, Any] = self._labels[self._index[sequence.prompt_id, sequence.answer_ids]]
        ids, counts = _tensor(row["label_ids"], np.int64), _tensor(row["label_counts"], np.int64)
        log_probs = _tensor(row["label_log_probs"], np.float32)
        draws = _tensor(row[DRAWS_COLUMN], np.int64) if self.drawn else None
        if len(counts) != len(sequence.answer_ids) or int(counts.sum()) != len(ids):
            raise DataError(f"the soft labels of prompt {sequence.prompt_id!r} do not fit its answer; annotate it anew")
        return TokenLabels(ids, log_probs, counts, draws)

    def labels_of(self, sequences: Sequence[Example]) -> list[TokenLabels]:
        """Of each sequence, in order."""
        return [self.token_labels(sequence) for sequence in sequences]

    def of(self, sequences: Sequence[Example]) -> list[SoftLabels]:
        """What the loss trains on, in the order of the sequences."""
        found = []
        for labels in self.labels_of(sequences):
            weights = labels.log_probs
            if labels.draws is not None:
                rows = torch.arange(len(labels.counts)).repeat_interleave(labels.counts)
                total = torch.zeros(len(labels.counts)).index_add_(0, rows, labels.draws.float())
                weights = (labels.draws / total[rows]).log()
            found.append(padded(labels, weights))
        return found


def _tensor(values: Any, kind: type) -> Tensor:
    return torch.from_numpy(np.asarray(values).astype(kind))
