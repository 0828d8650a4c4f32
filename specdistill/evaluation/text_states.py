"""Everything that a head needs of its target's pass over prompts and answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example, collate, split_by_tokens
from specdistill.data.features import TextStates
from specdistill.models import LanguageModel
from specdistill.models.eagle3 import AuxStates


@torch.no_grad()
def text_states(target: LanguageModel, layers: Sequence[int], sequences: Sequence[Example]) -> list[TextStates]:
    """Hidden states of the target over whole texts: in one pass, or in several where they are long.

    Args:
        target: Frozen.
        layers: Layers that a head reads; see `AuxStates`.
        sequences: Prompts with answers.

    Returns:
        States of each, in order.
    """
    found: list[TextStates] = []
    lengths = [len(one.prompt_ids) + len(one.answer_ids) for one in sequences]
    with AuxStates(target, layers) as caught:
        for rows in split_by_tokens(lengths, len(sequences)):
            chunk = [sequences[row] for row in rows]
            batch = collate(chunk).to(target.device)
            hidden = target.hidden_states(batch.input_ids, batch.attention_mask)
            aux = caught.take()
            answers = hidden[batch.predicting].split([len(one.answer_ids) for one in chunk])
            # Copies: a slice would keep the whole batch's storage alive.
            for row, (number, states) in enumerate(zip(rows, answers, strict=True)):
                found.append(TextStates(states.clone(), aux[row, : lengths[number]].clone()))
    return found
