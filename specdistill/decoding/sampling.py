"""Temperature, top-k, top-p and min-p, applied alike to target and draft."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from specdistill.errors import ConfigError, ModelError
from specdistill_kernels import filter_threshold, noise, sample


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
        rows = logits.reshape(-1, logits.shape[-1])
        lowest = filter_threshold(rows, **self.settings).reshape(*logits.shape[:-1], 1)
        return logits.masked_fill(logits < lowest, -torch.inf) / self.temperature

    @property
    def settings(self) -> dict[str, Any]:
        """As the kernels take them."""
        return asdict(self)

    def pick(self, logits: Tensor, keys: Keys, *, from_draft: bool = False, ahead: int = 0) -> Tensor:
        """One column per row of unprocessed logits [batch, vocab]: int64 [batch].

        Args:
            logits: Of the target, or of the draft (`from_draft`), whose noise is another.
            keys: Each row's randomness, so that a row's tokens don't depend on who shares its batch.
            ahead: Tokens between those emitted and the one that is picked.

        Raises:
            ModelError: A row that holds NaN, or no finite logit.
        """
        picked = sample(
            logits,
            seeds=keys.seeds,
            positions=keys.emitted + ahead,
            rounds=keys.emitted if from_draft else None,
            stream=noise.DRAFT if from_draft else noise.TARGET,
            **self.settings,
        )
        refuse_undefined(picked)
        return picked


@dataclass(frozen=True)
class Keys:
    """What the randomness of a batch's rows comes from; see `specdistill_kernels.noise`."""

    seeds: Tensor
    """int64 [batch]."""
    emitted: Tensor
    """Tokens each row has emitted so far, int64 [batch]."""

    def of_rows(self, rows: list[int]) -> Keys:
        """The same for some of the rows."""
        return Keys(self.seeds[rows], self.emitted[rows])


def refuse_undefined(tokens: Tensor) -> None:
    """Raises ModelError where a kernel found no token to emit."""
    if bool((tokens < 0).any()):
        raise ModelError(
            "a model's logits are NaN or infinite, so no token can be picked; load it in float32 or check its weights"
        )
