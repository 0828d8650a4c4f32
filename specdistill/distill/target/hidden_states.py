"""The target's hidden states of a sequence: computed, remembered, or taken over from the rollout."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from specdistill.data.batch import Batch, Example
from specdistill.decoding import Guidance
from specdistill.evaluation.guided_states import guided_hidden_states
from specdistill.models import LanguageModel

_CACHE_BYTES = 2 * 2**30
_BLOCK = 8


class TargetStates:
    """Hidden states [answer, hidden] of the frozen target, one tensor per sequence, behind the prompt as it sees it.

    A pass rounds differently with each batch that a sequence shares. So sequences that come again are computed in
    blocks that never change, whoever asks first: a resumed run then meets the numbers of the interrupted one.

    Args:
        target: The frozen target.
        reused: Sequences that come again every epoch: their states are kept if all of them fit 2 GiB.
        guidance: Mixes in the target's states after the negative prompt.
        lockstep: Every call is one pass, whatever was computed before: a sharded target's passes are collectives.
    """

    def __init__(
        self,
        target: LanguageModel,
        reused: Collection[Example] = frozenset(),
        guidance: Guidance | None = None,
        *,
        lockstep: bool = False,
    ) -> None:
        self._target, self._guidance, self._lockstep = target, guidance, lockstep
        self._cache: dict[Example, Tensor] = {}
        head = target.head_weight
        size = sum(len(example.answer_ids) for example in reused) * head.shape[1] * head.element_size()
        # Of like length, to waste less padding.
        ordered = sorted(set(reused), key=_length_and_key)
        blocks = [tuple(ordered[start : start + _BLOCK]) for start in range(0, len(ordered), _BLOCK)]
        self._block_of = {example: block for block in blocks for example in block} if size <= _CACHE_BYTES else {}
        if lockstep:
            self._block_of = {}

    def hidden_states(self, sequences: Sequence[Example]) -> list[Tensor]:
        """In the order of the sequences; those that are neither known nor come again share one pass."""
        for sequence in sequences:
            if sequence in self._block_of and sequence not in self._cache:
                block = self._block_of[sequence]
                self._cache.update(zip(block, self._compute(block), strict=True))
        missing = [row for row in sequences if row.target_hidden is None and row not in self._cache]
        fresh = dict(zip(missing, self._compute(missing), strict=True)) if missing else {}
        states_of_all = []
        for sequence in sequences:
            states = sequence.target_hidden
            if states is None:
                states = self._cache[sequence] if sequence in self._cache else fresh[sequence]
            states_of_all.append(states)
        return states_of_all

    def with_features(self, batch: Batch, sequences: Sequence[Example]) -> Batch:
        """The batch of these sequences with what a head reads; as it is for any other draft."""
        return batch

    def _compute(self, sequences: Sequence[Example]) -> list[Tensor]:
        read = [row.as_target_reads for row in sequences]
        return guided_hidden_states(self._target, read, self._guidance, one_pass=self._lockstep)


def _length_and_key(sequence: Example) -> tuple[int, tuple[str, tuple[int, ...]]]:
    return len(sequence.prompt_ids) + len(sequence.answer_ids), (sequence.prompt_id, sequence.answer_ids)
