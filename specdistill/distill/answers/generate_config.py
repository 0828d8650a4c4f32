"""Settings of `specdistill generate`; imports nothing heavy, so --help stays fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specdistill.errors import ConfigError
from specdistill.settings.checks import at_least
from specdistill.settings.parts import Config


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(Config):
    """Let the target write answers to train on; after a kill the same command goes on where it was."""

    target: str
    """The model that writes: hub id, checkpoint directory or .gguf file."""
    output: str
    """Directory for the answers, which train-draft takes with --rollouts and datasets loads as it is. New, empty, or of
    the same command that was cut off."""
    prompts: str = "builtin:train"
    """Prompts to answer; same forms as in train-draft."""
    rollouts_per_prompt: int = 4
    """Answers per prompt. A finished directory can be taken further with a larger number."""
    max_new_tokens: int = 128
    """Tokens per answer."""
    temperature: float = 1.0
    """Sample at the temperature that will be served."""
    top_k: int = 0
    """0 keeps all ids."""
    top_p: float = 1.0
    """1 keeps all ids."""
    min_p: float = 0.0
    """0 keeps all ids."""
    other: str | None = None
    """A second, cheaper model of the same tokenizer that answers the same prompts for the same budget: more answers,
    each worse. Answers go to OUTPUT/target and OUTPUT/other."""
    match: Literal["compute", "cost"] = "compute"
    """Of --other, what a budget is: compute counts sampling FLOPs, 2 x parameters x tokens; cost counts price x
    tokens."""
    target_price: float = 0.0
    """Of --match cost: price of a token of the target, in any unit."""
    other_price: float = 0.0
    """Of --match cost: price of a token of the other model, in the same unit."""
    scorer: str = "target-likelihood"
    """Of --other, how the report judges the answers: target-likelihood, exact-match, or module:function (then it also
    says for how many prompts some answer scored above 0)."""
    rollout_engine: Literal["transformers", "vllm"] = "transformers"
    """What writes the answers. vllm: vLLM in this process (install it beside specdistill); not with --other."""
    engine_memory: float = 0.9
    """Of --rollout-engine vllm: share of the GPU's memory that it may take."""
    ray: str | None = None
    """Write the shards on a Ray cluster (needs specdistill[ray]): its address, `auto`, or `local` for one started here.
    All its machines must see --output."""
    ray_workers: int = 1
    """Of --ray: workers, each with the whole target; each takes a GPU where there are any."""
    batch_size: int = 16
    """Answers written at a time; vLLM takes a file's together."""
    shard_size: int = 64
    """Answers per file; a kill costs at most these."""
    seed: int = 0
    """Of sampling; each answer's own seed follows from it, its prompt's id and its number."""
    device: str = "auto"
    """A torch device; auto takes the GPU where there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights."""
    threads: int = 0
    """CPU threads of torch; 0 leaves its default."""

    def __post_init__(self) -> None:
        at_least(self, 1, "ray_workers", "rollouts_per_prompt", "max_new_tokens", "batch_size", "shard_size")
        at_least(self, 0, "temperature", "top_k", "threads", "target_price", "other_price")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p must be in (0, 1], got {self.top_p}")
        if not 0 <= self.min_p < 1:
            raise ConfigError(f"--min-p must be in [0, 1), got {self.min_p}")
        if self.match == "cost" and not (self.target_price > 0 and self.other_price > 0):
            raise ConfigError("--match cost needs --target-price and --other-price above 0")
        if self.other is None and (self.target_price or self.other_price):
            raise ConfigError("--target-price and --other-price compare with a second model: name it with --other")
        if self.rollout_engine != "transformers" and self.other is not None:
            raise ConfigError("--rollout-engine vllm writes one model's answers; leave --other away")
        if self.ray is not None and self.other is not None:
            raise ConfigError("--ray writes one model's answers; leave --other away")
        if self.temperature == 0 and self.rollouts_per_prompt > 1:
            raise ConfigError("at --temperature 0 all answers to a prompt are the same; set --rollouts-per-prompt 1")
