"""How tokens are sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from specdistill.errors import ConfigError
from specdistill.settings.checks import a_share, at_least, check_temperature, needs


class SamplingArguments(TypedDict):
    """Sampling as the kernels take it."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Temperature and filters, applied alike to target and draft.

    Penalties of a model's generation_config are never applied. They depend on what was generated, and verification sees
    several positions at once, so an identical draft would score below 1.
    """

    temperature: float = 1.0
    """Sampling temperature; take the one that you serve with. 0 is greedy."""
    top_k: int = 0
    """Keep the K most likely ids; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of ids with at least this probability; 1 keeps all."""
    min_p: float = 0.0
    """Keep ids at least this fraction as likely as the likeliest one; 0 keeps all. Applied last, as in transformers."""

    def __post_init__(self) -> None:
        at_least(self, 0, "temperature", "top_k")
        check_temperature(self, "temperature")
        a_share(self, "top_p")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"--min-p must be in [0, 1), got {self.min_p}")

    def refuse_idle_filters(self) -> None:
        """Raises ConfigError for a filter at temperature 0, where the likeliest id is taken whatever it leaves over."""
        needs(self, not self.greedy, "--temperature above 0", "top_k", "top_p", "min_p")

    @property
    def greedy(self) -> bool:
        """Whether every token is the argmax."""
        return self.temperature == 0

    def distinct_copies(self, copies: int) -> int:
        """How many of `copies` answers to one prompt can differ: greedy ones are all the same."""
        return 1 if self.greedy else copies

    @property
    def filtered(self) -> bool:
        """Whether ids are left out by top-k, top-p or min-p."""
        return bool(self.top_k or self.top_p < 1 or self.min_p)

    @property
    def settings(self) -> SamplingArguments:
        """Keyword arguments of the kernels."""
        return {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p, "min_p": self.min_p}
