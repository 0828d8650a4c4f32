"""Writes labelled shards: the target's distributions over the answers of one part at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from specdistill.data import soft_labels
from specdistill.data.answer_rows import AnswerRow
from specdistill.data.features import FeatureWriter, are_whole, features_of, write_target
from specdistill.distill.answers.annotate_config import AnnotateConfig, LabelSettings
from specdistill.distill.answers.asked import SeenIds
from specdistill.distill.answers.label_room import PlannedFeatures
from specdistill.distill.answers.shards import SHARD, rollout_seed, to_example
from specdistill.errors import out_of_memory_named, smaller_batch
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.evaluation.logit_blocks import logit_blocks
from specdistill.evaluation.text_states import text_states
from specdistill.files import atomic, parquet
from specdistill.models import LanguageModel, load
from specdistill.models.outer_weights import outer_weights
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

    def prompts(self) -> list[AnswerRow]:
        """Name and ids of each answer's prompt, without the answers."""
        if self.shards is None:
            return list(self.given)
        rows = (row for shard in self.shards for row in parquet.read(shard, "prompt_id", "prompt_ids"))
        return cast(list[AnswerRow], list(rows))

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
        seen: Prompts as the target sees them, where it sees more than the draft.
        features: States that are stored for a head; None without.
        source: The target, where it was found already.
        device: This rank's, where there are several.
    """

    def __init__(
        self,
        config: AnnotateConfig,
        shards: Sequence[Path] | None,
        output: Path,
        given: Sequence[AnswerRow],
        seen: SeenIds,
        features: PlannedFeatures | None = None,
        source: load.ModelSource | None = None,
        device: str | None = None,
    ) -> None:
        device = device or resolve_device(config.machine.device)
        source = source or load.find(config.target, "target", base=config.adapter.target_base)
        self._config, self._output, self._parts, self._seen = config, output, Parts(shards, given), seen
        self._features = features
        self._target = load.load_model(source, "target", device=device, dtype=resolve_dtype(config.dtype, device))

    def write(self, number: int) -> int:
        """Labels a part where its shard is missing; its tokens."""
        rows, path = self._parts[number], self._output / SHARD.format(number)
        if not self._is_finished(path, rows):
            with out_of_memory_named(smaller_batch(self._config.batch_size)):
                parquet.write(path, self._labelled(path, rows))
        return sum(len(row["answer_ids"]) for row in rows)

    def _is_finished(self, path: Path, rows: Sequence[AnswerRow]) -> bool:
        # A shard of a set that has grown since lacks its last answers, and is written again.
        if not path.exists() or parquet.num_rows(path) != len(rows):
            return False
        return self._features is None or are_whole(path, rows, self._features.states_of)

    def _labelled(self, path: Path, rows: Sequence[AnswerRow]) -> list[parquet.Row]:
        """The rows with their labels; a head's states are on the disk before the shard that they belong to."""
        target, planned = self._target, self._features
        if planned is None:
            return label_rows(self._config, target, rows, self._seen)
        states_of = dataclasses.replace(planned.states_of, logit_scale=target.logit_scale)
        write_target(self._output, outer_weights(target), states_of)
        labelled: list[parquet.Row] = []

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                dtype = feature_dtype(planned.dtype, target.head_weight.dtype)
                features = FeatureWriter(file, rows, states_of, dtype)
                labelled.extend(label_rows(self._config, target, rows, self._seen, features, states_of.layers))
                features.finish()

        atomic.write_with(features_of(path), write)
        return labelled


def feature_dtype(asked: str, weights: torch.dtype) -> torch.dtype:
    """Number format of stored states; 16 bits of weights lose nothing where they are kept as they are."""
    if asked == "auto":
        return weights if weights in (torch.float16, torch.bfloat16) else torch.float16
    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[asked]


@torch.no_grad()
def label_rows(
    config: AnnotateConfig,
    target: LanguageModel,
    rows: Sequence[AnswerRow],
    seen: SeenIds | None = None,
    features: FeatureWriter | None = None,
    layers: Sequence[int] = (),
) -> list[parquet.Row]:
    """The rows with their label columns, and with the prompt that the target saw where `seen` has one.

    Args:
        config: Labels, and answers per pass.
        target: The target.
        rows: Prompts with answers.
        seen: Prompts as the target sees them.
        features: Takes the states of each row for a head; None without.
        layers: Layers that the head reads.
    """
    labelled = []
    for start in range(0, len(rows), config.batch_size):
        chunk = rows[start : start + config.batch_size]
        longer = [(seen or {}).get((row["prompt_id"], tuple(row["prompt_ids"]))) for row in chunk]
        read = [
            dataclasses.replace(to_example(row), target_prompt_ids=ids).as_target_reads
            for row, ids in zip(chunk, longer, strict=True)
        ]
        if features is None:
            states = answer_hidden_states(target, read)
        else:
            both = text_states(target, layers, read)
            states = [one.predicting for one in both]
            for row, one in zip(chunk, both, strict=True):
                features.add(one, row["prompt_id"])
        # One answer at a time: [answer, vocab] logits are small, those of a whole batch need not be.
        for row, ids, hidden in zip(chunk, longer, states, strict=True):
            labels = _labels(config.labels, target, row, hidden)
            prompt = {} if ids is None else {"target_prompt_ids": list(ids)}
            columns = soft_labels.to_columns(labels, target.vocab_size, config.labels.precision)
            labelled.append({**row} | prompt | columns)
    return labelled


def _labels(
    settings: LabelSettings, target: LanguageModel, row: AnswerRow, hidden: torch.Tensor
) -> soft_labels.TokenLabels:
    """Labels of one answer from the states that predict it."""
    seed = rollout_seed(settings.seed, row["prompt_id"], row.get("copy", 0))
    generator, blocks = torch.Generator().manual_seed(seed), []
    for block in logit_blocks(hidden, target.vocab_size):
        log_probs = (target.logits(hidden[block]).float() / settings.temperature).log_softmax(-1)
        if settings.drawn:
            blocks.append(soft_labels.drawn(log_probs, settings.draws, generator))
        else:
            blocks.append(soft_labels.likeliest(log_probs, settings.top_k))
    return soft_labels.joined(blocks)
