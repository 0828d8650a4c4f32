"""Hidden states that predict the tokens of answers, from which acceptance is scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from specdistill.data.batch import Example, collate, split_by_tokens
from specdistill.decoding.packed_pass import predicting_states
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.models import LanguageModel
from specdistill.models.language_model import LONG_TEXT

HiddenCache = dict[Example, torch.Tensor]
"""Example -> hidden states [answer, hidden] that predict its answer; valid while the model is frozen."""


@torch.no_grad()
def answer_hidden_states(
    model: LanguageModel,
    sequences: Sequence[Example],
    cache: HiddenCache | None = None,
    *,
    one_pass: bool = False,
) -> list[torch.Tensor]:
    """Computes the hidden states that predict each answer token: in one pass, or in several where sequences are long.

    Args:
        model: Frozen while it is used with a cache.
        sequences: Prompts with answers; all in one batch, if it is small.
        cache: Read first, and filled with the states that were missing.
        one_pass: Never split: each pass of a sharded model is a collective.

    Returns:
        [answer, hidden] per sequence, in order.
    """
    missing = [sequence for sequence in sequences if cache is None or sequence not in cache]
    known: HiddenCache = {} if cache is None else cache
    if missing:
        lengths = [len(sequence.prompt_ids) + len(sequence.answer_ids) for sequence in missing]
        rows = len(missing)
        for batch in split_by_tokens(lengths, rows) if not one_pass else [range(rows)]:
            chosen = [missing[row] for row in batch]
            long = max(lengths[row] for row in batch) > LONG_TEXT and not one_pass
            known.update(zip(chosen, (_in_passes if long else _in_one_pass)(model, chosen), strict=True))
    return [known[sequence] for sequence in sequences]


def _in_one_pass(model: LanguageModel, sequences: Sequence[Example]) -> Iterator[torch.Tensor]:
    batch = collate(sequences).to(model.device)
    hidden = predicting_states(model, batch)
    # Copies: a slice would keep the whole batch's storage alive.
    return (rows.clone() for rows in hidden.split([len(sequence.answer_ids) for sequence in sequences]))


def _in_passes(model: LanguageModel, sequences: Sequence[Example]) -> list[torch.Tensor]:
    """Reads long sequences in passes with a KV cache, which need no memory for every pair of tokens."""
    if not prove(model).rolls_back:
        # A state reads no padding, so each sequence has a pass of its own.
        return [states for sequence in sequences for states in _in_one_pass(model, [sequence])]
    texts = [[*sequence.prompt_ids, *sequence.answer_ids] for sequence in sequences]
    reader = cached(model, len(texts), max(map(len, texts)))
    parts: list[list[torch.Tensor]] = [[] for _ in texts]
    for start, hidden in reader.passes(texts):
        for row, (sequence, ids) in enumerate(zip(sequences, texts, strict=True)):
            first, end = len(sequence.prompt_ids) - 1 - start, len(ids) - 1 - start
            parts[row].append(hidden[row, max(0, first) : max(0, end)].clone())
    return [torch.cat(states) for states in parts]
