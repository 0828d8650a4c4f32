"""A target's distribution over the ids that a trimmed draft can propose, and all others as one outcome."""

from __future__ import annotations

import torch
from torch import Tensor

_TILE_ENTRIES = 2**25


@torch.no_grad()
def trimmed_log_probs(
    hidden: Tensor,
    weight: Tensor,
    draft_ids: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Computes the target's part of `fused_divergence` once, where several guesses of a draft look at one token.

    Args:
        hidden: [tokens, hidden], of the target after its final norm.
        weight: [vocab, hidden], its output head.
        draft_ids: int64 [draft_vocab], no id twice.
        temperature: Divides the logits.
        vocab_size: Number of real ids; further rows take no part. Default: all.
        softcap: c in logits = c tanh(logits / c) where the model has one.

    Returns:
        [tokens, draft_vocab + 1], float32 or wider: log-probabilities of `draft_ids`, and of all other ids together.
    """
    head = weight[:vocab_size]
    dtype = torch.promote_types(head.dtype, torch.float32)
    table = torch.empty(len(hidden), len(draft_ids) + 1, dtype=dtype, device=hidden.device)
    for rows in torch.arange(len(hidden), device=hidden.device).split(max(1, _TILE_ENTRIES // len(head))):
        logits = (hidden[rows].to(head.dtype) @ head.T).to(dtype)
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_probs = (logits / temperature).log_softmax(-1)
        table[rows, :-1] = log_probs[:, draft_ids]
        table[rows, -1] = log_probs.index_fill_(1, draft_ids, -torch.inf).logsumexp(-1)
    return table
