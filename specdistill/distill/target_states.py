"""What the target says about a sequence, as hidden states: computed, remembered, or taken over from the rollout."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Many

import torch
from torch import Tensor

from specdistill.data.batch import Sequence
from specdistill.decoding import Guidance
from specdistill.evaluation.acceptance import HiddenCache, answer_hidden_states
from specdistill.models import LanguageModel

_CACHE_BYTES = 2 * 2**30


class TargetStates:
    """Hidden states [answer, hidden] of the frozen target, one tensor per sequence.

    Args:
        target: Never changed.
        reused: Sequences that come again every epoch: their states are kept while they fit 2 GiB.
        guidance: Mixes in what the target says after the negative prompt.
    """

    def __init__(
        self, target: LanguageModel, reused: Collection[Sequence] = frozenset(), guidance: Guidance | None = None
    ) -> None:
        self._target, self._reused, self._guidance = target, reused, guidance
        self._cache: HiddenCache = {}
        self._held = 0

    def of(self, sequences: Many[Sequence]) -> list[Tensor]:
        """In the order of the sequences; one pass of the target over those that are not known yet."""
        missing = [each for each in sequences if each.target_hidden is None and each not in self._cache]
        fresh = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        for sequence, states in fresh.items():
            size = states.numel() * states.element_size()
            if sequence in self._reused and self._held + size <= _CACHE_BYTES:
                self._cache[sequence] = states
                self._held += size
        found = []
        for sequence in sequences:
            states = sequence.target_hidden
            if states is None:
                states = self._cache[sequence] if sequence in self._cache else fresh[sequence]
            found.append(states)
        return found

    def _compute(self, sequences: Many[Sequence]) -> list[Tensor]:
        states = answer_hidden_states(self._target, sequences)
        if self._guidance is None:
            return states
        twins = [
            Sequence(each.prompt_id, self._guidance.negative_ids, each.answer_ids, each.provenance)
            for each in sequences
        ]
        negative = answer_hidden_states(self._target, twins)
        with torch.no_grad():
            return [self._guidance.combine(*both) for both in zip(states, negative, strict=True)]
