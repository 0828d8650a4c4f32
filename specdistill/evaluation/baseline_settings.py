"""Settings of what `bench` measures beside the draft. Imports nothing heavy."""

# Without `from __future__ import annotations`: see `config`.
from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least

LLAMA_CPP_SIZE = 12
"""Length of the runs that llama.cpp's n-grams look for by default."""


@dataclass(frozen=True, kw_only=True)
class BaselineSettings:
    """Drafting without a model, beside the draft."""

    baselines: Literal["best", "all", "predict", "none"] = "best"
    """Runs copied from the text cost nothing: n-gram as vLLM, transformers and llama.cpp look them up, and suffix
    decoding; alone, and with the draft where nothing is found. best predicts all of them on the scored answers, and
    times, of those that an engine has, the fastest alone and the one with the draft (n-gram; no engine has suffix
    decoding with a draft). all times each, predict none. none leaves them out."""
    lookup_max: int = 4
    """Longest run of tokens that an n-gram looks for (vLLM's prompt_lookup_max). llama.cpp looks for runs of this
    length only, and ngram there of at most --num-draft-tokens."""
    lookup_min: int = 2
    """Shortest run of tokens that vLLM's n-gram looks for (prompt_lookup_min); transformers takes 1."""

    def __post_init__(self) -> None:
        at_least(self, 1, "lookup_min", "lookup_max")
        if self.lookup_min > self.lookup_max:
            raise ConfigError(f"--lookup-min {self.lookup_min} exceeds --lookup-max {self.lookup_max}")
