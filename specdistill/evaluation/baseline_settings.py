"""Settings of what `bench` measures beside the draft. Imports nothing heavy."""

# Without `from __future__ import annotations`: see `config`.
from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Drafting without a model, beside the draft."""

    baselines: Literal["best", "all", "predict", "none"] = "best"
    """Runs copied from the text cost nothing: n-gram as vLLM, transformers and llama.cpp look them up, and suffix
    decoding; alone, and with the draft where nothing is found. best predicts all of them on the scored answers, and
    times the fastest alone and the fastest with the draft beside it. all times each, predict none. none leaves them
    out."""
    ngram_min: int = 2
    """Tokens that must repeat at least, for vLLM's n-gram (its prompt_lookup_min)."""
    ngram_max: int = 4
    """Tokens that are compared at most (its prompt_lookup_max)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "ngram_min")
        if self.ngram_max < self.ngram_min:
            raise ConfigError(f"--ngram-max {self.ngram_max} is below --ngram-min {self.ngram_min}")
