"""The target's hidden states for a head, from one pass: those that predict the answer, and those that it reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdistill.data.batch import Batch, Example, collate, split_by_tokens
from specdistill.decoding import Guidance
from specdistill.distill.target.hidden_states import TargetStates
from specdistill.models import LanguageModel, ModelPair
from specdistill.models.eagle3 import AuxStates
from specdistill.models.head_draft import HeadModel

_CACHE_BYTES = 2 * 2**30
_BLOCK = 8


class _Both(NamedTuple):
    predicting: Tensor
    """[answer, hidden]."""
    aux: Tensor
    """[prompt and answer, 3 x hidden]."""


class HeadStates(TargetStates):
    """Hidden states of the frozen target over whole texts; nothing is written to disk.

    Args:
        target: The frozen target.
        layers: Layers that the head reads.
        reused: Sequences that come again every epoch: their states are kept if all of them fit 2 GiB.
    """

    def __init__(self, target: LanguageModel, layers: Sequence[int], reused: Collection[Example] = frozenset()) -> None:
        super().__init__(target)
        self._layers, self._known, self._recent = tuple(layers), dict[Example, _Both](), dict[Example, _Both]()
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
        length = batch.input_ids.shape[1]
        rows = [pad(both.aux, (0, 0, 0, length - len(both.aux))) for both in self._states(sequences)]
        return dataclasses.replace(batch, aux=torch.stack(rows).to(batch.input_ids.device))

    def _states(self, sequences: Sequence[Example]) -> list[_Both]:
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

    @torch.no_grad()
    def _run(self, sequences: Sequence[Example]) -> list[_Both]:
        found: list[_Both] = []
        with AuxStates(self._target, self._layers) as caught:
            for rows in split_by_tokens([_length(one) for one in sequences], len(sequences)):
                chunk = [sequences[row] for row in rows]
                batch = collate(chunk).to(self._target.device)
                hidden = self._target.hidden_states(batch.input_ids, batch.attention_mask)
                aux = caught.take()
                answers = hidden[batch.predicting].split([len(one.answer_ids) for one in chunk])
                # Copies: a slice would keep the whole batch's storage alive.
                for row, (one, states) in enumerate(zip(chunk, answers, strict=True)):
                    found.append(_Both(states.clone(), aux[row, : _length(one)].clone()))
        return found


def states_for(
    pair: ModelPair, reused: Collection[Example], guidance: Guidance | None, *, lockstep: bool
) -> TargetStates:
    """The target's states as a pair's draft needs them; arguments as for `TargetStates`."""
    if isinstance(pair.draft, HeadModel):
        return HeadStates(pair.target, pair.draft.head.aux_layers, reused)
    return TargetStates(pair.target, reused, guidance, lockstep=lockstep)


def _length(one: Example) -> int:
    return len(one.prompt_ids) + len(one.answer_ids)
