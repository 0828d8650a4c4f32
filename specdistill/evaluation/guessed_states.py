"""Hidden states from which a draft guesses the tokens of answers, by start and depth where its rounds matter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specdistill.data.batch import Example
from specdistill.decoding.position_scaling import cached
from specdistill.decoding.proof import prove
from specdistill.errors import ConfigError
from specdistill.evaluation.answer_states import HiddenCache, answer_hidden_states
from specdistill.evaluation.parallel_states import guessing_states
from specdistill.models import LanguageModel
from specdistill.models.eagle3 import AuxStates
from specdistill.models.eagle3.unrolled import Anchors, unrolled_states
from specdistill.models.head_draft import HeadModel

_ROUNDS = 256
"""Rounds of a head in one pass, about: each sees the whole text before it."""


@torch.no_grad()
def guessed_states(
    draft: LanguageModel,
    sequences: Sequence[Example],
    depths: int,
    target: LanguageModel | None = None,
    target_cache: HiddenCache | None = None,
) -> list[Tensor]:
    """Computes the states from which a draft guesses, for rounds that start anywhere in an answer.

    Args:
        draft: Any draft.
        sequences: Prompts with answers that the target wrote.
        depths: Tokens guessed per round.
        target: The target, whose states a head reads.
        target_cache: Filled with the target's states that predict the answers, where a head needs a pass of it.

    Returns:
        [answer, depths, hidden] per sequence: at [t, d] the states that guess answer token t + d in a round that starts
        with token t; beyond the answer's end they are arbitrary. A single depth for drafts that go token by token.

    Raises:
        ConfigError: A head's target is not here.
        ModelError: A parallel draft can't drop tokens again.
    """
    if isinstance(draft, HeadModel):
        if target is None:
            raise ConfigError(f"{draft.name} is a head, which is scored with its target's hidden states only")
        return [_of_head(draft, target, sequence, depths, target_cache) for sequence in sequences]
    if draft.parallel is not None:
        return guessing_states(draft, sequences, depths)
    return [rows[:, None] for rows in answer_hidden_states(draft, sequences)]


def _of_head(
    draft: HeadModel, target: LanguageModel, sequence: Example, depths: int, target_cache: HiddenCache | None
) -> Tensor:
    prompt = len(sequence.prompt_ids)
    text = [*sequence.prompt_ids, *sequence.answer_ids]
    hidden, states = _read(target, draft.head.aux_layers, text)
    if target_cache is not None and sequence not in target_cache:
        target_cache[sequence] = hidden[prompt - 1 : -1].clone()
    ids = torch.tensor([text], device=draft.device)
    # A row guesses the token after the next: the first of an answer is guessed behind the prompt's last but one.
    first, end, parts = max(0, prompt - 2), len(text) - 2, []
    for start in range(first, end, _ROUNDS):
        count = min(_ROUNDS, end - start)
        anchors = Anchors(*(torch.tensor([number], device=draft.device) for number in (start, count)))
        steps = unrolled_states(draft.head, ids, states[None], anchors, depths)
        parts.append(torch.stack([step[0, :count] for step in steps], 1))
    if prompt == 1:
        # Nothing is drafted behind a prompt of one token.
        parts.insert(0, draft.head.fc.weight.new_zeros(1, depths, draft.head.config.hidden_size))
    return torch.cat(parts)


def _read(target: LanguageModel, layers: Sequence[int], text: list[int]) -> tuple[Tensor, Tensor]:
    """The target's hidden states of a text [tokens, hidden], and those that a head reads [tokens, layers * hidden]."""
    if not prove(target).rolls_back:
        with AuxStates(target, layers) as caught:
            hidden = target.hidden_states(torch.tensor([text], device=target.device))[0]
            return hidden, caught.take()[0]
    reader = cached(target, 1, len(text))
    states = reader.watch(layers)
    hidden = torch.cat([part[0].clone() for _, part in reader.passes([text])])[: len(text)]
    return hidden, states.at(torch.arange(len(text), device=target.device)[None])[0]
