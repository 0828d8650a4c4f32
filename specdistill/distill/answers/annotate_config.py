"""Settings of `specdistill annotate`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig(Config):
    """Store what the target thinks of answers, so that training needs no target; the same command resumes."""

    target: str
    """The model whose distribution is stored: hub id, checkpoint directory or .gguf file."""
    output: str
    """Directory for the labelled answers, which train-draft takes with --soft-labels and datasets loads as it is. New,
    empty, or of the same command that was cut off."""
    rollouts: str | None = None
    """Answers to label: a directory that 'specdistill generate' or train-draft (its folder rollouts) wrote, by the
    target or by any other model of its tokenizer. Left out: the prompts' own answers (field answer)."""
    prompts: str = "builtin:train"
    """Without --rollouts: prompts with answers; same forms as in train-draft."""
    labels: Literal["top-k", "sampled"] = "top-k"
    """top-k: the likeliest ids of each token, exact, and the rest as one outcome; any divergence, and the gradient is
    off by at most twice the rest's probability. sampled: ids drawn from the target; the gradient is right on average
    and fewer bytes are needed, but only fkl can be trained."""
    top_k: int = 64
    """Of --labels top-k: ids per token."""
    draws: int = 64
    """Of --labels sampled: draws per token; likely ids are drawn several times and stored once."""
    temperature: float = 1.0
    """Divides the target's logits: the loss must then use this temperature."""
    precision: Literal["float16", "float32"] = "float16"
    """Of the stored log-probabilities."""
    max_new_tokens: int = 128
    """Without --rollouts: answers are cut at this many tokens."""
    ray: str | None = None
    """Write the shards on a Ray cluster (needs specdistill[ray]): its address, `auto`, or `local` for one started here.
    All its machines must see --output."""
    ray_workers: int = 1
    """Of --ray: workers, each with the whole target; each takes a GPU where there are any."""
    batch_size: int = 8
    """Answers per pass of the target."""
    seed: int = 0
    """Of the draws; each answer's own seed follows from it, its prompt's id and its number."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        at_least(self, 1, "ray_workers", "top_k", "draws", "batch_size")
        at_least(self, 2, "max_new_tokens")
        at_least(self, 0, "threads")
        if self.labels not in ("top-k", "sampled"):
            raise ConfigError(f"unknown --labels {self.labels!r}; choose top-k or sampled")
        if self.temperature <= 0:
            raise ConfigError(f"--temperature must be above 0, got {self.temperature}: at 0 every label is one id")
        if self.draws > 2**16 - 1:
            raise ConfigError(f"--draws must be at most 65535, got {self.draws}")
