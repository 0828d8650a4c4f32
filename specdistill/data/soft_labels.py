"""Soft labels on disk: the target's distribution for each answer token, so that training can do without the target.

A labelled shard holds the columns of `AnswerRow` and these:

    label_ids        the ids kept for each answer token, one token after the other
    label_log_probs  their log-probabilities
    label_counts     number of ids for each answer token
    label_draws      how often each id was drawn; only if ids were drawn instead of being the likeliest

The loss treats all ids outside the likeliest K as one outcome. Their probability is not spread over the K, since that
would teach the draft a sharper distribution than the target's. Drawn labels are unbiased: the mean of draws / N over
all draws is the distribution itself (Anshumann et al. 2025, arXiv 2503.16870).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from specdistill.data.answer_rows import AnswerRow
from specdistill.data.batch import Example, fill_empty_places
from specdistill.errors import DataError, first_line
from specdistill_kernels import SoftLabels

COLUMNS = ("label_ids", "label_log_probs", "label_counts")
"""Columns of every labelled shard."""
DRAWS_COLUMN = "label_draws"
"""The column that only drawn labels have."""


class TokenLabels(NamedTuple):
    """Labels of one answer, flat: those of its first token, then those of the second, and so on."""

    ids: Tensor
    """int64 [labels]."""
    log_probs: Tensor
    """float [labels]: the target's log-probabilities at the temperature of the labels."""
    counts: Tensor
    """int64 [answer]: number of labels of each token."""
    draws: Tensor | None = None
    """int64 [labels]: how often each id was drawn; None if the ids are the likeliest."""


def likeliest(log_probs: Tensor, k: int) -> TokenLabels:
    """Labels each token with its K likeliest ids.

    Args:
        log_probs: [answer, vocab], the target's log-probabilities.
        k: Ids per token; more than the vocabulary has keeps all.
    """
    values, ids = log_probs.topk(min(k, log_probs.shape[1]))
    return TokenLabels(ids.flatten(), values.flatten(), torch.full((len(ids),), ids.shape[1]))


def drawn(log_probs: Tensor, draws: int, seed: int | torch.Generator) -> TokenLabels:
    """Labels each token with ids drawn from its distribution, with replacement.

    An id that was drawn several times is kept once, together with its number of draws.

    Args:
        log_probs: [answer, vocab], the target's log-probabilities.
        draws: Draws per token (N).
        seed: Random seed of this answer, or the CPU generator that the labels of its tokens so far have used.
    """
    if not len(log_probs):
        return TokenLabels(*(torch.zeros(0, dtype=kind) for kind in (torch.int64, torch.float32, torch.int64)))
    # Drawn on the CPU, so that every device gives the same ids.
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(log_probs.exp().cpu(), draws, replacement=True, generator=generator)
    distinct = [row.unique(return_counts=True) for row in chosen]
    ids = torch.cat([token_ids for token_ids, _ in distinct])
    times_drawn = torch.cat([times for _, times in distinct])
    counts = torch.tensor([len(token_ids) for token_ids, _ in distinct])
    return TokenLabels(ids, log_probs.cpu()[_token_of_each_label(counts), ids], counts, times_drawn)


def joined(blocks: Sequence[TokenLabels]) -> TokenLabels:
    """Labels of an answer from those of its blocks, in order; at least one."""
    draws = [block.draws for block in blocks if block.draws is not None]
    return TokenLabels(
        torch.cat([block.ids for block in blocks]),
        torch.cat([block.log_probs for block in blocks]),
        torch.cat([block.counts for block in blocks]),
        torch.cat(draws) if draws else None,
    )


def to_columns(labels: TokenLabels, vocab_size: int, precision: str) -> dict[str, np.ndarray]:
    """Label columns of one answer's row, in the smallest integer type that holds every id.

    Args:
        labels: Labels of one answer.
        vocab_size: Up to 65536 ids take two bytes each, more take four.
        precision: Type of the log-probabilities: float16 (probabilities are then off by at most 0.02 %) or float32.

    Returns:
        Column name -> values; see the module's docstring.
    """
    id_type = np.uint16 if vocab_size <= 2**16 else np.uint32
    columns = {
        "label_ids": labels.ids.cpu().numpy().astype(id_type),
        "label_log_probs": labels.log_probs.float().cpu().numpy().astype(precision),
        "label_counts": labels.counts.cpu().numpy().astype(id_type),
    }
    if labels.draws is not None:
        columns[DRAWS_COLUMN] = labels.draws.cpu().numpy().astype(np.uint16)
    return columns


def bytes_per_token(kept: float, vocab_size: int, precision: str, *, with_draws: bool) -> float:
    """Estimates the bytes of label columns per answer token, before compression.

    Args:
        kept: Ids per token.
        vocab_size, precision: As in `to_columns`.
        with_draws: Whether the ids are drawn.
    """
    id_bytes = 2 if vocab_size <= 2**16 else 4
    return kept * (id_bytes + (2 if precision == "float16" else 4) + (2 if with_draws else 0)) + id_bytes


def padded(labels: TokenLabels, weights: Tensor) -> SoftLabels:
    """Arranges the labels of one answer as the loss takes them.

    Args:
        labels: Labels of one answer.
        weights: [labels], logarithm of the probability that the loss gives each id.

    Returns:
        [answer, K], where K is the largest number of ids of a token. Rows with fewer ids end with empty places.
    """
    width = max(1, int(labels.counts.max())) if len(labels.counts) else 1
    filled = torch.arange(width)[None] < labels.counts[:, None]
    ids = torch.full(filled.shape, -1, dtype=torch.int64)
    log_probs = torch.full(filled.shape, -torch.inf)
    ids[filled], log_probs[filled] = labels.ids, weights.float()
    return SoftLabels(fill_empty_places(ids), log_probs)


def measure(shard: Path) -> tuple[int, int]:
    """Bytes of a shard's label columns on disk, and its labels."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(shard) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        columns = [group.column(number) for group in groups for number in range(group.num_columns)]
        ours = [column for column in columns if column.path_in_schema.partition(".")[0] in (*COLUMNS, DRAWS_COLUMN)]
        labels = [column.num_values for column in columns if column.path_in_schema.startswith("label_ids")]
    return sum(column.total_compressed_size for column in ours), sum(labels)


class LabelStore:
    """Soft labels of a directory of shards. They are read on demand, so memory does not grow with the data set.

    Args:
        shards: Parquet files that `specdistill annotate` wrote.

    Raises:
        DataError: A shard can't be read or holds no labels.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        import datasets

        datasets.disable_progress_bars()
        try:
            self._rows = datasets.Dataset.from_parquet([str(path) for path in shards])
        except Exception as error:
            reason = first_line(error.__cause__ or error)
            raise DataError(f"{shards[0].parent} can't be read ({reason}); annotate it again") from error
        assert isinstance(self._rows, datasets.Dataset)
        missing = [name for name in COLUMNS if name not in self._rows.column_names]
        if missing:
            raise DataError(
                f"{shards[0].parent} holds no soft labels (no column {missing[0]}); 'specdistill annotate' writes them"
            )
        self.drawn = DRAWS_COLUMN in self._rows.column_names
        names = [*COLUMNS, *([DRAWS_COLUMN] if self.drawn else [])]
        self._labels = self._rows.select_columns(names).with_format("numpy")
        self._row_numbers: dict[tuple[str, tuple[int, ...]], int] = {}

    def rows(self) -> list[AnswerRow]:
        """All rows in order, with the columns that training reads and without the labels."""
        names = ("prompt_id", "prompt_ids", "target_prompt_ids", "answer_ids", "provenance", "copy")
        rows = self._rows.select_columns([name for name in names if name in self._rows.column_names])
        return cast(list[AnswerRow], rows.to_list())

    def place(self, example: Example, row: int) -> None:
        """Registers the row that holds an example's labels.

        Args:
            example: An answer of `rows`.
            row: Its number in `rows`, counted from 0.
        """
        self._row_numbers[example.prompt_id, example.answer_ids] = row

    def token_labels(self, example: Example) -> TokenLabels:
        """Reads the labels of an example that `place` has registered.

        Raises:
            DataError: The labels do not match the answer's length.
        """
        row: dict[str, Any] = self._labels[self._row_numbers[example.prompt_id, example.answer_ids]]
        ids, counts = _tensor(row["label_ids"], np.int64), _tensor(row["label_counts"], np.int64)
        log_probs = _tensor(row["label_log_probs"], np.float32)
        draws = _tensor(row[DRAWS_COLUMN], np.int64) if self.drawn else None
        if len(counts) != len(example.answer_ids) or int(counts.sum()) != len(ids):
            raise DataError(f"the soft labels of prompt {example.prompt_id!r} do not fit its answer; annotate it again")
        return TokenLabels(ids, log_probs, counts, draws)

    def labels_of(self, sequences: Sequence[Example]) -> list[TokenLabels]:
        """Stored labels of each example, in order."""
        return [self.token_labels(example) for example in sequences]

    def soft_labels(self, sequences: Sequence[Example]) -> list[SoftLabels]:
        """Labels as the loss takes them, [answer, K] for each example, in order."""
        return [padded(labels, _loss_weights(labels)) for labels in self.labels_of(sequences)]


def _loss_weights(labels: TokenLabels) -> Tensor:
    """[labels]: stored log-probabilities of the likeliest ids, or log(draws / N) of drawn ids."""
    if labels.draws is None:
        return labels.log_probs
    tokens = _token_of_each_label(labels.counts)
    draws_per_token = torch.zeros(len(labels.counts)).index_add_(0, tokens, labels.draws.float())
    return (labels.draws / draws_per_token[tokens]).log()


def _token_of_each_label(counts: Tensor) -> Tensor:
    """int64 [labels]: index of the answer token that each label belongs to."""
    return torch.arange(len(counts)).repeat_interleave(counts)


def _tensor(values: Any, kind: type) -> Tensor:
    return torch.from_numpy(np.asarray(values).astype(kind))
