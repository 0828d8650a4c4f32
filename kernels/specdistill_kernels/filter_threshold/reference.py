"""The definition of the filters, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from specdistill_kernels.sampling_settings import SamplingSettings

# How many of the largest logits are sorted before a whole row is; top-p rarely keeps more.
_FIRST_WIDTH = 1024


def threshold(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Computes `filter_threshold`."""
    temperature, top_k, top_p, min_p = settings
    scores = logits if logits.dtype == torch.float64 else logits.float()
    lowest = scores.new_full(scores.shape[:1], -torch.inf)
    sampled = temperature > 0
    ranked = sampled & (((top_k > 0) & (top_k < scores.shape[1])) | (top_p < 1))
    if ranked.any():
        rows = ranked.nonzero()[:, 0]
        lowest[rows] = _by_rank(scores[rows], temperature[rows], top_k[rows], top_p[rows])
    if (sampled & (min_p > 0)).any():
        floor = scores.amax(-1) + temperature * min_p.to(scores.dtype).log()
        lowest = torch.where(sampled & (min_p > 0), torch.maximum(lowest, floor), lowest)
    return lowest


def filters_something(settings: SamplingSettings) -> bool:
    """Whether the filters can drop an id of any row. Reads the tensors, so on a GPU it waits for them."""
    _, top_k, top_p, min_p = settings
    return bool(((top_k > 0) | (top_p < 1) | (min_p > 0)).any())


def filtered(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits in float32 (float64 stays), -inf where the filters drop them; temperature is not applied."""
    scores = logits if logits.dtype == torch.float64 else logits.float()
    if not filters_something(settings):
        return scores
    return scores.masked_fill(scores < threshold(scores, settings)[:, None], -torch.inf)


def _by_rank(scores: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Thresholds [rows] of rows that have top-k or top-p."""
    vocab = scores.shape[1]
    width = min(vocab, max(_FIRST_WIDTH, int(top_k.clamp(max=vocab).max())))
    kept = torch.where(top_k > 0, top_k.clamp(max=vocab), vocab)
    while True:
        # Sorted values, largest first; ties need no order, a threshold keeps them all.
        ordered = scores.topk(width, dim=-1).values
        kth = ordered.gather(1, (kept - 1).clamp(max=width - 1)[:, None])[:, 0]
        kth = torch.where(top_k > 0, kth, -torch.inf)
        mass = ((scores - ordered[:, :1]) / temperature[:, None]).exp()
        total = torch.where(scores >= kth[:, None], mass, 0).sum(-1)
        running = ((ordered - ordered[:, :1]) / temperature[:, None]).exp().cumsum(-1)
        # The first id that reaches the share is still kept.
        last = (running < (top_p * total)[:, None]).sum(-1)
        if width == vocab or not (last >= width).any():
            break
        width = vocab
    by_mass = ordered.gather(1, last.clamp(max=width - 1)[:, None])[:, 0]
    return torch.where(top_p < 1, torch.maximum(kth, by_mass), kth)
