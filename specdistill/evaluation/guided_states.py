"""Hidden states of a guided target over finished answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specdistill.data.batch import Example
from specdistill.decoding.guidance import Guidance
from specdistill.evaluation.acceptance import answer_hidden_states
from specdistill.models import LanguageModel


@torch.no_grad()
def guided_hidden_states(
    model: LanguageModel, sequences: Sequence[Example], guidance: Guidance | None, *, one_pass: bool = False
) -> list[torch.Tensor]:
    """Computes the hidden states that predict each answer token, [answer, hidden] per sequence, in order.

    Args:
        model: The target.
        sequences: Prompts with answers.
        guidance: Mixes in the states after the negative prompt and the same answer; None leaves them as they are.
        one_pass: As in `answer_hidden_states`.
    """
    states = answer_hidden_states(model, sequences, one_pass=one_pass)
    if guidance is None:
        return states
    twins = [Example(row.prompt_id, guidance.negative_ids, row.answer_ids, row.provenance) for row in sequences]
    negative = answer_hidden_states(model, twins, one_pass=one_pass)
    return [guidance.combine(*both) for both in zip(states, negative, strict=True)]
