"""Expected rounds over an answer, from the chances that its tokens come from the draft."""

from __future__ import annotations

import numpy as np


def by_start(chances: np.ndarray, num_draft_tokens: int) -> np.ndarray:
    """Chances by the round's first token and the place in it, [tokens, num_draft_tokens]; 0 beyond the end.

    Args:
        chances: [tokens] of a draft that goes token by token, whose guess of a token is the same whatever round it
            falls in; [tokens, depths] of a parallel draft, whose guess depends on where the round started.
        num_draft_tokens: Draft length.

    Raises:
        ValueError: A parallel draft was scored at fewer depths.
    """
    if chances.ndim == 1:
        padded = np.concatenate([chances, np.zeros(num_draft_tokens)])
        return np.lib.stride_tricks.sliding_window_view(padded, num_draft_tokens)[: len(chances)]
    if chances.shape[1] < min(num_draft_tokens, len(chances)):
        raise ValueError(f"scored for rounds of {chances.shape[1]} tokens, asked about {num_draft_tokens}")
    return chances


def expected_rounds(token_acceptance: np.ndarray, num_draft_tokens: int, *, first_drafted: bool = False) -> float:
    """Expected number of verifications that an answer takes, the prompt's own pass (first token) not counted.

    Args:
        token_acceptance: a_t of each answer token, as `by_start` takes it; the first is ignored where no draft is made
            for it.
        num_draft_tokens: Draft length gamma.
        first_drafted: Whether the prompt's own pass verifies a draft too, as in transformers' assisted generation.

    A round that starts at t keeps k draft tokens with probability a_t ... a_(t+k-1) (1 - a_(t+k)) and emits k + 1.
    Where all chances are 0 or 1 this is the count of the rounds that greedy decoding makes.
    """
    chances = by_start(token_acceptance, num_draft_tokens)[0 if first_drafted else 1 :]
    tokens = len(chances)
    starts = np.zeros(tokens + num_draft_tokens + 2)
    starts[0] = 1.0
    for position in range(tokens):
        alive = starts[position]
        if alive == 0:
            continue
        # The decoder proposes no more than what is left minus the token that verification adds.
        limit = min(num_draft_tokens, tokens - position - 1)
        for kept in range(limit):
            chance = chances[position, kept]
            starts[position + kept + 1] += alive * (1 - chance)
            alive *= chance
        starts[position + limit + 1] += alive
    return float(starts[:tokens].sum())
