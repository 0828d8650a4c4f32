"""The target's hidden states for a head, from one pass: those that predict the answer, and those that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdistill.data.batch import Batch, Example
from specdistill.data.features import TextStates
from specdistill.decoding import Guidance
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.evaluation.text_states import text_states
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.head_draft import HeadModel

_CACHE_BYTES = 2 * 2**30
_BLOCK = 8


class HeadStates(TargetStates):
    """Hidden states of the frozen target over whole texts; nothing is written to disk.

    Args:
        target: The frozen target.
        layers: Layers that the head reads.
        reused: Sequences that come again every epoch: their states are kept if all of them fit 2 GiB.
    """

    def __init__(self, target: LanguageModel, layers: Sequence[int], reused: Collection[Example] = frozenset()) -> None:
        super().__init__(target)
        self._layers, self._known, self._recent = (
            tuple(layers),
            dict[Example, TextStates](),
            dict[Example, TextStates](),
        )
        ordered = sorted(set(reused), key=lambda one: (_length(one), one.prompt_id, one.answer_ids))
        numbers = sum(_length(one) * len(self._layers) + len(one.answer_ids) for one in ordered)
        size = numbers * target.head_weight.shape[1] * target.head_weight.element_size()
        blocks = [tuple(ordered[start : start + _BLOCK]) for start in range(0, len(ordered), _BLOCK)]
        # Blocks never change, so that a resumed run meets the numbers of the interrupted one.
        self._blocks = {one: block for block in blocks for one in block} if size <= _CACHE_BYTES else {}

    def hidden_states(self, sequences: Sequence[Example]) -> list[Tensor]:
        """In the order of the sequences; those that are neither known nor come again share a pass."""
        return [both.predicting for both in self._states(sequences)]

    def with_features(self, batch: Batch, sequences: Sequence[Example]) -> Batch:
        """The batch with what the head reads (`aux`), from the same pass."""
        return with_aux(batch, [both.aux for both in self._states(sequences)])

    def _states(self, sequences: Sequence[Example]) -> list[TextStates]:
        for one in sequences:
            if one in self._blocks and one not in self._known:
                block = self._blocks[one]
                self._known.update(zip(block, self._run(block), strict=True))
        missing = [one for one in sequences if one not in self._known and one not in self._recent]
        if missing:
            self._recent = dict(zip(missing, self._run(missing), strict=True)) | {
                one: self._recent[one] for one in sequences if one in self._recent
            }
        return [self._known[one] if one in self._known else self._recent[one] for one in sequences]

    def _run(self, sequences: Sequence[Example]) -> list[TextStates]:
        return text_states(self._target, self._layers, sequences)


def with_aux(batch: Batch, aux: Sequence[Tensor]) -> Batch:
    """The batch with what a head reads of each text, [prompt and answer, 3 x hidden], padded to the batch's length."""
    length = batch.input_ids.shape[1]
    rows = [pad(one, (0, 0, 0, length - len(one))) for one in aux]
    return dataclasses.replace(batch, aux=torch.stack(rows).to(batch.input_ids.device))


def states_for(
    pair: ModelPair,
    reused: Collection[Example],
    guidance: Guidance | None,
    *,
    lockstep: bool,
    stored: TargetStates | None = None,
) -> TargetStates:
    """The target's states as a pair's draft needs them: those on disk, or with arguments as for `TargetStates`."""
    if stored is not None:
        return stored
    if isinstance(pair.draft, HeadModel):
        return HeadStates(pair.target, pair.draft.head.aux_layers, reused)
    return TargetStates(pair.target, reused, guidance, lockstep=lockstep)


def _length(one: Example) -> int:
    return len(one.prompt_ids) + len(one.answer_ids)
