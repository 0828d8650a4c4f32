"""Temperature, top-k, top-p and min-p, applied alike to target and draft."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from specdistill.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are picked. Penalties of a model's generation_config are never applied: an identical draft would then
    score below 1 (they depend on what was generated, and verification sees several positions at once)."""

    temperature: float = 1.0
    """0 picks the argmax."""
    top_k: int = 0
    """Keep the K most likely ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with at least this mass; 1 keeps all."""
    min_p: float = 0.0
    """Keep ids at least this fraction as likely as the likeliest; 0 keeps all. Applied last, as in transformers."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"--temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise ConfigError(f"--top-k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"--min-p must be in [0, 1), got {self.min_p}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    def process(self, logits: Tensor) -> Tensor:
        """Logits [..., vocab] after temperature and filters, float32; -inf where an id was filtered out.

        At temperature 0 the logits come back as they are: only their argmax is used then.
        """
        logits = logits.float()
        if self.greedy:
            return logits
        logits = logits / self.temperature
        if self.top_k:
            kth = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True, stable=True)
            mass = ordered.softmax(-1)
            # Mass *before* the id: the first id that reaches top_p is still kept.
            dropped = mass.cumsum(-1) - mass >= self.top_p
            logits = logits.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)
        if self.min_p:
            floor = logits.amax(-1, keepdim=True) + math.log(self.min_p)
            logits = logits.masked_fill(logits < floor, -torch.inf)
        return logits

    def pick(self, processed: Tensor, generators: list[torch.Generator]) -> Tensor:
        """One column per row of [batch, vocab] logits that `process` returned: int64 [batch].

        Each row draws from its own generator, so a row's tokens don't depend on who shares its batch.
        """
        if self.greedy:
            return processed.argmax(-1)
        probabilities = processed.softmax(-1)
        return torch.cat(
            [
                torch.multinomial(row, 1, generator=generator)
                for row, generator in zip(probabilities, generators, strict=True)
            ]
        )


def row_generators(seeds: list[int], device: torch.device) -> list[torch.Generator]:
    """One source of randomness per row."""
    return [torch.Generator(device=device).manual_seed(seed) for seed in seeds]
