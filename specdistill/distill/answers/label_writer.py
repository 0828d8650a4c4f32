"""Writes labelled shards: the target's distributions over the answers of one part at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from specdistill.data import soft_labels
from specdistill.data.answer_rows import AnswerRow
from specdistill.distill.answers.annotate_config import AnnotateConfig
from specdistill.distill.answers.shards import SHARD, rollout_seed, to_example
from specdistill.errors import out_of_memory_named, smaller_batch
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.files import parquet
from specdistill.models import LanguageModel, load
from specdistill.models.pair import resolve_device, resolve_dtype

SHARD_SIZE = 64
"""Answers per shard of given answers and of text."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The answers, one part per shard, read when they are asked for: memory does not grow with the set."""

    shards: Sequence[Path] | None
    given: Sequence[AnswerRow]
    """Rows, where there are no shards."""

    def __len__(self) -> int:
        return len(self.shards) if self.shards is not None else -(-len(self.given) // SHARD_SIZE)

    def __getitem__(self, number: int) -> list[AnswerRow]:
        if self.shards is not None:
            return cast(list[AnswerRow], parquet.read(self.shards[number]))
        return list(self.given[number * SHARD_SIZE : (number + 1) * SHARD_SIZE])


class LabelWriter:
    """Holds the target and labels one part at a time, here or in a Ray worker.

    Args:
        config: Settings.
        shards, given: As in `Parts`.
        output: Where labelled shards go.
        source: The target, where it was found already.
        device: This rank's, where there are several.
    """

    def __init__(
        self,
        config: AnnotateConfig,
        shards: Sequence[Path] | None,
        output: Path,
        given: Sequence[AnswerRow],
        source: load.ModelSource | None = None,
        device: str | None = None,
    ) -> None:
        device = device or resolve_device(config.machine.device)
        source = source or load.find(config.target, "target")
        self._config, self._output, self._parts = config, output, Parts(shards, given)
        self._target = load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))

    def write(self, number: int) -> int:
        """Labels a part where its shard is missing; its tokens."""
        rows, path = self._parts[number], self._output / SHARD.format(number)
        # A shard of a set that has grown since lacks its last answers, and is written again.
        if not path.exists() or parquet.num_rows(path) != len(rows):
            with out_of_memory_named(smaller_batch(self._config.batch_size)):
                parquet.write(path, label_rows(self._config, self._target, rows))
        return sum(len(row["answer_ids"]) for row in rows)


@torch.no_grad()
def label_rows(config: AnnotateConfig, target: LanguageModel, rows: Sequence[AnswerRow]) -> list[parquet.Row]:
    """The rows with their label columns."""
    settings, labelled = config.labels, []
    for start in range(0, len(rows), config.batch_size):
        chunk = rows[start : start + config.batch_size]
        states = answer_hidden_states(target, [to_example(row) for row in chunk])
        # One answer at a time: [answer, vocab] logits are small, those of a whole batch need not be.
        for row, hidden in zip(chunk, states, strict=True):
            seed = rollout_seed(settings.seed, row["prompt_id"], row.get("copy", 0))
            generator, blocks = torch.Generator().manual_seed(seed), []
            for block in logit_blocks(hidden, target.vocab_size):
                log_probs = (target.logits(hidden[block]).float() / settings.temperature).log_softmax(-1)
                if settings.drawn:
                    blocks.append(soft_labels.drawn(log_probs, settings.draws, generator))
                else:
                    blocks.append(soft_labels.likeliest(log_probs, settings.top_k))
            labels = soft_labels.joined(blocks)
            labelled.append({**row} | soft_labels.to_columns(labels, target.vocab_size, settings.precision))
    return labelled
