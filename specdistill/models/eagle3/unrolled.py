"""Every round of a text in one pass: what a head gives when rounds begin behind many tokens of it (training-time test).

A round that begins at position i (its anchor) reads the text up to x[i+1] with the target's features, then its own
guesses with its own features. Where each guess is taken to be the text's next token, step k of the round reads x[i+1+k]
with the hidden state that step k - 1 gave. So step k sees the first step's rows up to the anchor, and steps 1 to k
of its own round: nothing of other rounds. Only rows that guess something get queries; all others are keys and values.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from specdistill.models.eagle3.head import Eagle3Head


class Anchors(NamedTuple):
    """Where rounds begin: `counts` positions from `first` on, in each row of a batch."""

    first: Tensor
    """int64 [batch]."""
    counts: Tensor
    """int64 [batch]; the rounds of a row that has none are computed and mean nothing."""


def unrolled_states(head: Eagle3Head, input_ids: Tensor, aux: Tensor, anchors: Anchors, steps: int) -> list[Tensor]:
    """Hidden states of every step of every round.

    Args:
        head: With an embedding.
        input_ids: int64 [batch, length], padded on the right with any id.
        aux: [batch, length, 3 x target_hidden_size]: the target's states, in `aux_layers`' order.
        anchors: Where rounds begin.
        steps: Steps of a round.

    Returns:
        For each step [batch, most rounds, hidden]; `head.logits` turns them into guesses. Rounds beyond a row's count,
        and steps beyond its text, mean nothing.
    """
    device, length = input_ids.device, input_ids.shape[1]
    rounds = torch.arange(max(1, int(anchors.counts.max())), device=device)
    at = (anchors.first[:, None] + rounds).clamp(max=max(0, length - 2))
    features = head.fuse(aux[:, :-1])
    positions = torch.arange(length - 1, device=device)[None]
    _, keys, values = head.project(head.embed(input_ids[:, 1:]), features, positions)
    unseen = positions[:, None] > at[:, :, None]
    state = features.gather(1, at[:, :, None].expand(-1, -1, features.shape[-1]))
    steps_of_round: list[tuple[Tensor, Tensor]] = []
    found = []
    for step in range(steps):
        read = input_ids.gather(1, (at + 1 + step).clamp(max=length - 1))
        query, key, value = head.project(head.embed(read), state, at + step)
        if step:
            # The first step's own row is among the text's.
            steps_of_round.append((key, value))
        state = head.layer.finish(state, _attend(query, keys, values, unseen, steps_of_round))
        found.append(state)
    return found


def _attend(query: Tensor, keys: Tensor, values: Tensor, unseen: Tensor, own: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention of each round to the text up to its anchor and to its own later steps.

    Args:
        query: [batch, heads, rounds, head_dim].
        keys, values: [batch, kv_heads, text, head_dim].
        unseen: bool [batch, rounds, text].
        own: Keys and values [batch, kv_heads, rounds, head_dim] of each later step so far.

    Returns:
        [batch, rounds, heads, head_dim].
    """
    grouped = query.unflatten(1, (keys.shape[1], -1))
    scores = grouped @ keys[:, :, None].transpose(-1, -2)
    scores = scores.masked_fill(unseen[:, None, None], -torch.inf)
    later = [(grouped * key[:, :, None]).sum(-1, keepdim=True) for key, _ in own]
    scale = query.shape[-1] ** -0.5
    shares = nn.functional.softmax(torch.cat((scores, *later), -1) * scale, -1, dtype=_at_least_float32(query))
    shares = shares.to(query.dtype)
    text = keys.shape[2]
    context = shares[..., :text] @ values[:, :, None]
    for number, (_, value) in enumerate(own):
        context = context + shares[..., text + number, None] * value[:, :, None]
    return context.flatten(1, 2).transpose(1, 2)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
